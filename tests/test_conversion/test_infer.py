"""Which backbone names and shapes belong to, and what is said if that is not clear."""

import pytest

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.conversion.infer import build_backbone, infer_backbone

ARCH = dict(channels=[8, 16], depths=[1, 2], kernel_sizes=[11, 9])
BACKBONES = {
    'pelk': dict(type='PeLK', arch=ARCH | dict(central_radius=2)),
    'slak': dict(type='SLaK', arch=ARCH),
    'replknet': dict(type='RepLKNet', arch=ARCH),
}
STEM = {
    'pelk': 'downsample_layers.0.0.weight',
    'slak': 'downsample_layers.0.0.weight',
    'replknet': 'downsample_layers.0.0.conv.weight',
}


def shapes_of(cfg):
    state = build_backbone(cfg | dict(out_indices=(0, 1))).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize('family', BACKBONES)
def test_config_comes_back(family):
    cfg = BACKBONES[family]
    assert infer_backbone(shapes_of(cfg), family) == cfg | dict(out_indices=(0, 1))


@pytest.mark.parametrize('family', BACKBONES)
@pytest.mark.parametrize(
    ('shape', 'found'), [(None, 'is missing'), ((8, 3), r'has shape \(8, 3\)')]
)
def test_tensor_that_decides_is_named(family, shape, found):
    shapes = shapes_of(BACKBONES[family]) | {STEM[family]: shape}
    if shape is None:
        del shapes[STEM[family]]
    message = f'^cannot infer the architecture: {STEM[family]} {found}$'
    with pytest.raises(CheckpointError, match=message):
        infer_backbone(shapes, family)


@pytest.mark.parametrize('family', BACKBONES)
def test_stages_must_be_consecutive(family):
    shapes = shapes_of(BACKBONES[family])
    for gap in ('stages.0.', 'stages.'):
        shapes = {name: s for name, s in shapes.items() if not name.startswith(gap)}
        with pytest.raises(CheckpointError, match='have no consecutive stages'):
            infer_backbone(shapes, family)


def test_sizes_that_contradict_each_other():
    arch = ARCH | dict(kernel_sizes=[11, 8])
    with pytest.raises(CheckpointError, match='make no valid SLaK: kernel size 8'):
        build_backbone(dict(type='SLaK', arch=arch, out_indices=(0, 1)))
