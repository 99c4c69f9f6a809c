"""Backbones built as the reference files describe them."""

import json

import pytest
import torch

from pelk_mm.backbones import RepLKNet, SLaK


@pytest.fixture(autouse=True, scope='module')
def _one_thread(one_thread):
    """For all tests of this folder."""


def _arch(kwargs):
    if 'dims' in kwargs:
        *kernel_sizes, small_kernel = kwargs['kernel_size']
        return dict(
            channels=kwargs['dims'],
            depths=kwargs['depths'],
            kernel_sizes=kernel_sizes,
            small_kernel=small_kernel,
            width_factor=kwargs['width_factor'],
            decomposed=kwargs['Decom'],
        )
    return dict(
        channels=kwargs['channels'],
        depths=kwargs['layers'],
        kernel_sizes=kwargs['large_kernel_sizes'],
        small_kernel=kwargs['small_kernel'],
        dw_ratio=kwargs['dw_ratio'],
    )


@pytest.fixture(scope='session')
def build_released():
    """Builds the backbone that a released implementation's arguments describe."""

    def build(kwargs, **extra):
        if 'dims' in kwargs:
            return SLaK(_arch(kwargs), **extra)
        norm = kwargs.get('norm_intermediate_features', False)
        return RepLKNet(_arch(kwargs), norm_intermediate_features=norm, **extra)

    return build


@pytest.fixture(scope='session')
def golden(shared):
    """Loads one of the files of reference tensors."""
    return lambda name: torch.load(shared / 'golden' / f'{name}.pt', weights_only=True)


@pytest.fixture(scope='session')
def manifest(shared):
    """Loads names and shapes of a full-size model, and its description."""
    folder = shared / 'golden' / 'manifests'

    def load(name):
        summary = json.loads((folder / 'summary.json').read_text())
        return json.loads((folder / f'{name}.json').read_text()), summary[name]

    return load


@pytest.fixture(scope='session')
def assert_reproduces():
    """Holds feature maps to reference ones: 5e-5 of each map's std."""

    def check(maps, reference):
        assert [m.shape for m in maps] == [m.shape for m in reference]
        for i, (ours, theirs) in enumerate(zip(maps, reference, strict=True)):
            difference = (ours - theirs).abs().max() / theirs.std()
            assert difference <= 5e-5, f'map {i}: {difference:.1e} of its std'

    return check


@pytest.fixture(scope='session')
def stage_outputs():
    """Runs a backbone and returns its maps before and after the output norms."""

    @torch.no_grad()
    def run(model, images):
        raw = []
        hooks = [
            stage.register_forward_hook(lambda _, args, out: raw.append(out))
            for stage in model.stages
        ]
        maps = model(images)
        for hook in hooks:
            hook.remove()
        return raw, maps

    return run
