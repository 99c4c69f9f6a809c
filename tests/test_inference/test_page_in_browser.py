"""The page in a real browser: drop an image, point at a pixel, look at the console."""

import json
import shutil

import cv2
import numpy as np
import pytest

pytest.importorskip('gradio', reason='gradio, the extra app, is not installed')
pytest.importorskip('selenium', reason='selenium is not installed')

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from pelk_mm.inference.page import serve  # noqa: E402
from pelk_mm.inference.probabilities import top_classes  # noqa: E402

BROWSER, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason='chromium or chromedriver is not installed'
)

FLAGS = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--disable-dev-shm-usage',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--window-size=1280,1100',
)


@pytest.fixture
def browser(tmp_path, monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f'--user-data-dir={tmp_path / "profile"}', 'about:blank'):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


def requested(browser):
    """Addresses that the browser has asked for since the last call."""
    messages = (
        json.loads(e['message'])['message'] for e in browser.get_log('performance')
    )
    return [
        message['params']['request']['url']
        for message in messages
        if message['method'] == 'Network.requestWillBeSent'
    ]


def percentages(browser, number):
    """Class names and percentages that a panel of probabilities shows."""
    lines = browser.find_element(By.ID, f'probabilities-{number}').text.splitlines()
    values = [line for line in lines[1:] if line]
    return dict(zip(values[::2], values[1::2], strict=True))


@pytest.mark.long
def test_upload_click_and_bad_file(
    browser, segmenter, segmenter_files, image, tmp_path
):
    def wait_for(condition):
        return WebDriverWait(browser, 60, 0.1).until(condition)

    def first(selector):
        return lambda _: next(
            iter(browser.find_elements(By.CSS_SELECTOR, selector)), None
        )

    with serve([segmenter, segmenter], ['first', 'second']) as url:
        browser.get(url)
        chooser = wait_for(first('#source input[type=file]'))
        chooser.send_keys(str(segmenter_files / 'image.png'))
        overlays = [wait_for(first(f'#overlay-{i} img')) for i in (0, 1)]
        wait_for(lambda _: overlays[0].get_property('naturalWidth') == 5 * 96)
        legend = browser.find_element(By.ID, 'legend-0').text
        labels = segmenter.predict(image).labels
        for name in (segmenter.classes[i] for i in np.unique(labels)):
            assert name in legend
        assert ' s on cpu, 96 x 64' in browser.find_element(By.ID, 'caption-1').text

        # The pointer at three quarters of the height and a quarter of the width.
        size = overlays[0].size
        across, down = -round(size['width'] / 4), round(size['height'] / 4)
        top = top_classes(segmenter.predict(image))
        name = segmenter.class_name(top.at(0.25, 0.75)[0][0])
        pointer = ActionChains(browser)
        pointer.move_to_element_with_offset(overlays[0], across, down).click().perform()
        for panel in (0, 1):
            shown = wait_for(lambda _, panel=panel: percentages(browser, panel))
            assert next(iter(shown)) == name
            assert (
                abs(float(shown[name].rstrip('%')) - 100 * top.at(0.25, 0.75)[0][1]) < 9
            )
        # And where it moves, without a click.
        other = segmenter.class_name(int(top.classes[0, 10, 80]))
        across = round(size['width'] * (80.5 / 96 - 0.5))
        down = round(size['height'] * (10.5 / 64 - 0.5))
        ActionChains(browser).move_to_element_with_offset(
            overlays[1], across, down
        ).perform()
        wait_for(lambda _: next(iter(percentages(browser, 0)), '') == other)

        browser.save_screenshot(str(tmp_path / 'page.png'))
        pixels = cv2.imread(str(tmp_path / 'page.png'))
        assert pixels.shape[1] == 1280
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000

        (tmp_path / 'bad.png').write_text('hello')
        browser.find_element(
            By.CSS_SELECTOR, '#source [aria-label="Remove Image"]'
        ).click()
        wait_for(lambda _: not browser.find_elements(By.CSS_SELECTOR, '#overlay-0 img'))
        chooser = wait_for(first('#source input[type=file]'))
        chooser.send_keys(str(tmp_path / 'bad.png'))
        wait_for(
            lambda _: 'not an image' in browser.find_element(By.ID, 'problem').text
        )
        log = browser.get_log('browser')
        assert [entry for entry in log if entry['level'] == 'SEVERE'] == []
        addresses = requested(browser)
    assert addresses
    outside = [
        a for a in addresses if not a.startswith((url, 'data:', 'blob:', 'about:'))
    ]
    assert [a for a in outside if not a.startswith('chrome')] == []
