"""A narrow segmenter and a narrow detector, opened, and an image for the first."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from pelk_mm.inference.models import open_model

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture(scope='session')
def segmenter(segmenter_files):
    return open_model(
        segmenter_files / 'segmenter.py', segmenter_files / 'segmenter.pth'
    )


@pytest.fixture
def image(segmenter, segmenter_files):
    return segmenter.read_image(segmenter_files / 'image.png')


@pytest.fixture(scope='session')
def detector_files(tmp_path_factory, narrow):
    """Config and checkpoint of an untrained narrow Cascade Mask R-CNN."""
    folder = tmp_path_factory.mktemp('detector')
    cfg = Config.fromfile(CONFIGS / 'cascade_mask_rcnn_pelk_t_coco.py')
    narrow(cfg, 'detector', folder).dump(folder / 'detector.py')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), folder / 'detector.pth')
    return folder / 'detector.py', folder / 'detector.pth'


@pytest.fixture(scope='session')
def detector(detector_files):
    return open_model(*detector_files)
