"""Drawn streets in CamVid's layout, and small copies of the examples' configs."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from scenes import LABELS, draw_scene

EXAMPLES = Path(__file__).resolve().parents[2] / 'configs' / 'examples'
COUNTS = dict(train=5, val=2, test=7)

#: An example on small images, narrower still: what is changed is changed in one place.
SMALL = """
_base_ = '{config}'
__import__('pelk_mm').engine.set_crop_size(_base_, (48, 64), scale=(80, 60))
channels = [8, 12, 16, 24]
model = dict(
    backbone=dict(arch=dict(channels=channels, depths=[1, 1, 1, 1])),
    decode_head=dict(in_channels=channels, channels=8),
)
"""


@pytest.fixture(scope='session')
def small_example():
    """Writes a small copy of an example, given its name, into a folder."""

    def write(name, folder):
        path = folder / f'{name}.py'
        path.write_text(SMALL.format(config=EXAMPLES / path.name))
        return path

    return write


@pytest.fixture(scope='session')
def streets(tmp_path_factory):
    """Drawn scenes in CamVid's layout, with those of its classes that are drawn."""
    folder = tmp_path_factory.mktemp('streets') / 'camvid'
    classes = Config.fromfile(EXAMPLES / '_base_/narrow_camvid.py').classes
    same = dict(sidewalk='pavement', person='pedestrian', house='building')
    numbers = np.full(256, 255, np.uint8)
    for name, number in LABELS.items():
        if same.get(name, name) in classes:
            numbers[number] = classes.index(same.get(name, name))
    for split, count in COUNTS.items():
        for kind in ('img_dir', 'ann_dir'):
            (folder / kind / split).mkdir(parents=True)
        for i in range(count):
            image, labels = draw_scene(len(split), 'training', i, (60, 80))
            cv2.imwrite(str(folder / f'img_dir/{split}/{i}.jpg'), image)
            cv2.imwrite(str(folder / f'ann_dir/{split}/{i}.png'), numbers[labels])
    return folder


@pytest.fixture(scope='module')
def patched():
    """What takes longer than the training of a small model is left out."""
    with pytest.MonkeyPatch.context() as patch:
        # Formatting the config for the log.
        patch.setattr(Config, 'pretty_text', '')
        patch.setattr('gc.collect', lambda: 0)  # mmengine does for each data set
        patch.setattr('camvid_pictures.FIELD_SIZE', 96)
        yield patch
