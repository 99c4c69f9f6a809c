"""The page as a server: what it predicts, what it refuses, what it leaves behind."""

import html
import json
import os
import tempfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

gradio = pytest.importorskip('gradio', reason='gradio, the extra app, is not installed')
httpx = pytest.importorskip('httpx')

from pelk_mm.inference import page  # noqa: E402
from pelk_mm.inference.images import ImageError  # noqa: E402
from pelk_mm.inference.overlay import Entry  # noqa: E402


@pytest.fixture(scope='module')
def url(segmenter):
    with page.serve([segmenter, segmenter], ['first', 'second'], max_mb=1) as url:
        yield url


@pytest.fixture
def client(url):
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        yield client


def upload(client, content, name='image.png'):
    return client.post('/gradio_api/upload', files={'files': (name, content)})


def predict(client, path):
    """Outputs of the event that a dropped image triggers, or None at an error."""
    file = dict(
        path=str(path), orig_name='image.png', meta={'_type': 'gradio.FileData'}
    )
    event = dict(data=[file, 0.3], fn_index=0, session_hash='a-session')
    answer = client.post('/gradio_api/queue/join', json=event)
    if answer.status_code != 200:
        return None
    with client.stream('GET', '/gradio_api/queue/data?session_hash=a-session') as lines:
        for line in lines.iter_lines():
            message = json.loads(line.removeprefix('data:') or '{}')
            if message.get('msg') == 'process_completed':
                return message['output']['data'] if message['success'] else None
    raise AssertionError('no answer')


def test_image(client, segmenter, image, segmenter_files):
    (path,) = upload(client, (segmenter_files / 'image.png').read_bytes()).json()
    problem, picture, legend, caption, *others = predict(client, path)
    assert problem == ''
    assert 's on cpu, 96 x 64' in caption
    labels = segmenter.predict(image).labels
    for name in (segmenter.classes[i] for i in np.unique(labels)):
        assert html.escape(name) in legend
    assert '<b>' not in legend
    shown = client.get(f'/gradio_api/file={picture["path"]}')
    assert shown.headers['content-security-policy']
    pixels = cv2.imdecode(np.frombuffer(shown.content, np.uint8), 1)
    expected, _ = page.draw_result(segmenter, image, segmenter.predict(image))
    assert np.array_equal(pixels[..., ::-1], expected)
    assert len(others) == 2 + 5  # the second model's are there too


@pytest.mark.parametrize('name', ['größe 1 #2%20.png', 'picture', '写真.jpeg', '.png'])
def test_names_of_uploads_do_not_matter(client, segmenter_files, name):
    content = (segmenter_files / 'image.png').read_bytes()
    (path,) = upload(client, content, name).json()
    problem, picture, *_ = predict(client, path)
    assert problem == ''
    assert picture


@pytest.mark.parametrize('content', [b'', b'hello', b'\x89PNG\r\n\x1a\n' + b'x' * 50])
def test_what_is_no_image_is_said_in_the_page(client, content):
    (path,) = upload(client, content).json()
    problem, picture, *_ = predict(client, path)
    assert 'this file is not an image that can be read' in problem
    assert picture is None
    assert path not in problem


def test_one_pixel(client):
    (path,) = upload(
        client, cv2.imencode('.png', np.zeros((1, 1, 3)))[1].tobytes()
    ).json()
    problem, picture, *_ = predict(client, path)
    assert 'cannot predict for an image of 1 x 1 pixels' in problem
    assert picture is None


def png_of(width, height):
    """A PNG that claims a size and has few bytes."""
    content = bytearray(cv2.imencode('.png', np.zeros((1, 1, 3)))[1].tobytes())
    content[16:24] = width.to_bytes(4, 'big') + height.to_bytes(4, 'big')
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, 'big')
    return bytes(content)


@pytest.mark.parametrize('size', [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 9)])
def test_decompression_bombs_are_not_decoded(client, size, monkeypatch):
    (path,) = upload(client, png_of(*size)).json()
    problem, picture, *_ = predict(client, path)
    assert 'pixels' in problem
    assert picture is None


def test_uploads_are_bounded(client):
    assert upload(client, b'x' * 900_000).status_code == 200
    assert upload(client, b'x' * 1_060_000).status_code == 413
    assert upload(client, b'x' * 9_000_000).status_code == 413


def test_uploads_lie_in_the_folder(client):
    folder = Path(tempfile.gettempdir())
    assert folder.name.startswith('pelk_mm_app_')
    for name in ('../../escaped.png', '/tmp/escaped.png', 'a/../../escaped.png'):
        (path,) = upload(client, b'hello', name).json()
        assert Path(path).resolve().is_relative_to(folder.resolve())


@pytest.mark.parametrize(
    'path', ['/etc/passwd', '../../../../etc/passwd', '{here}', '{folder}/../../{here}']
)
def test_other_files_are_not_served(client, path):
    path = path.format(here=__file__, folder=tempfile.gettempdir())
    for route in ('/gradio_api/file=', '/file=', '/gradio_api/file/', '/static/'):
        answer = client.get(route + path, follow_redirects=True)
        assert answer.status_code in (403, 404), route
        assert 'root:' not in answer.text
        assert 'def test' not in answer.text


def test_images_elsewhere_are_not_read(client, segmenter_files):
    """A request may name any path as that of its upload."""
    assert predict(client, segmenter_files / 'image.png') is None
    assert predict(client, 'http://127.0.0.1:9/image.png') is None


def test_other_names_of_this_host(client):
    answer = client.get('/', headers={'host': 'evil.example'})
    assert answer.status_code == 400
    assert client.get('/').status_code == 200


def test_nothing_is_loaded_from_elsewhere(client):
    config = client.get('/config').json()
    assert config['analytics_enabled'] is False
    assert not any(style.startswith('http') for style in config['stylesheets'])
    assert 'fonts.googleapis' not in client.get('/theme.css').text


def test_folder_goes_with_the_page(segmenter):
    before = tempfile.gettempdir(), os.environ.get('GRADIO_TEMP_DIR')
    with (
        page.serve([segmenter], ['one']) as url,
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        (path,) = upload(client, b'hello').json()
        folder = Path(tempfile.gettempdir())
        assert Path(path).is_relative_to(folder)
    assert not folder.exists()
    assert (tempfile.gettempdir(), os.environ.get('GRADIO_TEMP_DIR')) == before


def test_large_images_are_reduced(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(page, 'WORK_PIXELS', 5000)
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((300, 100, 3), np.uint8))
    image, note = page.read_upload(segmenter, str(tmp_path / 'a.png'))
    assert image.shape == (122, 41, 3)
    assert note == 'reduced from 100 x 300 to 41 x 122 pixels'
    monkeypatch.setattr(page, 'MAX_PIXELS', 29_999)
    with pytest.raises(ImageError, match='has 100 x 300 pixels, more than'):
        page.read_upload(segmenter, str(tmp_path / 'a.png'))


def test_names_are_escaped():
    text = page.legend_html([Entry('<script>', (1, 2, 3), '4%')])
    assert '<script>' not in text
    assert '&lt;script&gt;' in text
    assert 'nothing found' in page.legend_html([])


def test_ports(url):
    taken = httpx.URL(url).port
    with pytest.raises(page.PageError, match=f'port {taken} is taken.*--port'):
        page.require_port('127.0.0.1', taken)
    assert page.require_port('127.0.0.1', None) != taken
    for host in ('203.0.113.7', 'no host'):
        with pytest.raises(page.PageError, match=f"--host '{host}' cannot be listened"):
            page.require_port(host, None)
