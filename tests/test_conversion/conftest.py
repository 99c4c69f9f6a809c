"""Small released models, made of this package's by the rules' way back."""

import pytest
import torch

from pelk_mm import backbones
from pelk_mm.checkpoints import to_released
from pelk_mm.checkpoints.files import read_checkpoint
from pelk_mm.conversion.convert import convert_checkpoint

ARCH = dict(channels=[8, 16], depths=[1, 2], kernel_sizes=[11, 9])
SMALL = {
    'slak': dict(type='SLaK', arch=ARCH, out_indices=(0, 1)),
    'replknet': dict(type='RepLKNet', arch=ARCH, out_indices=(0, 1)),
}


@pytest.fixture
def build():
    """Builds the backbone of a config."""

    def make(cfg):
        kwargs = {key: value for key, value in cfg.items() if key != 'type'}
        return getattr(backbones, cfg['type'])(**kwargs).eval()

    return make


@pytest.fixture
def small(randomise, build):
    """Makes a backbone and its released state dict."""

    def make(family='slak', **more):
        model = randomise(build(SMALL[family] | more))
        released, _, unknown = to_released(model.state_dict(), family)
        assert not unknown
        return model, released

    return make


@pytest.fixture
def save(tmp_path):
    """Writes an object with ``torch.save``; returns the path."""

    def write(content, name='src.pth', **kwargs):
        torch.save(content, tmp_path / name, **kwargs)
        return tmp_path / name

    return write


@pytest.fixture
def convert(save, tmp_path):
    """Converts an object; returns report and what was written."""

    def run(content, dst='dst.pth', **kwargs):
        path = tmp_path / dst
        report = convert_checkpoint(save(content), path, force=True, **kwargs)
        return report, read_checkpoint(path) if report.written else None

    return run
