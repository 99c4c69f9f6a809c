"""Fixtures that several test files use."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

# The same examples in every run: a suite that passed passes again.
settings.register_profile('repeatable', derandomize=True, database=None, deadline=None)
settings.load_profile('repeatable')

SHARED = Path(__file__).resolve().parents[2] / 'shared'


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope='module')
def one_thread():
    """Small models are faster on one thread, and gradients the same from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def shared():
    """Folder of real data and of tensors from the released implementations."""
    if not SHARED.is_dir():
        pytest.skip(f'no reference data: {SHARED} does not exist')
    return SHARED


@pytest.fixture(scope='session')
def randomise():
    """Function that draws a module's norms and scales at random, as training would."""

    @torch.no_grad()
    def draw(module):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 1.5)
            if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm)):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.2)
        for name, parameter in module.named_parameters():
            if name.endswith('gamma'):
                parameter.uniform_(0.1, 1)
        return module

    return draw


@pytest.fixture(scope='session')
def street(tmp_path_factory):
    """One made-up image and its ground truth in Cityscapes' directory layout."""
    root = tmp_path_factory.mktemp('cityscapes')
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for kind, suffix, values in (
            ('leftImg8bit', 'leftImg8bit', rng.integers(0, 255, (128, 256, 3))),
            ('gtFine', 'gtFine_labelTrainIds', rng.integers(0, 19, (128, 256))),
        ):
            folder = root / kind / split / 'town'
            folder.mkdir(parents=True)
            for i in range(2):
                cv2.imwrite(
                    str(folder / f'town_{i}_{suffix}.png'), values.astype(np.uint8)
                )
    return root
