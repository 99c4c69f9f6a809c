"""A narrow segmenter, opened, and an image for it."""

import pytest

from pelk_mm.inference.models import open_model


@pytest.fixture(scope='session')
def segmenter(segmenter_files):
    return open_model(
        segmenter_files / 'segmenter.py', segmenter_files / 'segmenter.pth'
    )


@pytest.fixture
def image(segmenter, segmenter_files):
    return segmenter.read_image(segmenter_files / 'image.png')
