from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from pelk_mm.analysis.stage_kernels import (
    arch_config,
    find_backbone,
    load_backbone,
    random_backbone,
    stage_kernels,
)
from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.layers import PeripheralConv2d

SIZES = dict(channels=[8, 16], depths=[1, 2], kernel_sizes=[11, 9])
COMMON = dict(out_indices=(0, 1))
CONFIGS = {
    'pelk': dict(type='PeLK', arch=dict(SIZES, central_radius=2)),
    'pelk-small': dict(
        type='PeLK',
        arch=dict(SIZES, central_radius=2, small_kernel=3),
        norm_cfg=dict(type='BN'),
    ),
    'slak': dict(type='SLaK', arch=SIZES),
    'slak-dense': dict(type='SLaK', arch=dict(SIZES, decomposed=False)),
    'replknet': dict(type='RepLKNet', arch=SIZES),
}
PARTS = {
    'pelk': ['large'],
    'pelk-small': ['large', 'small'],
    'slak': ['vertical', 'horizontal', 'small'],
    'slak-dense': ['large', 'small'],
    'replknet': ['large', 'small'],
}


@pytest.fixture(params=CONFIGS)
def kind(request):
    return request.param


@pytest.fixture
def trained(kind, randomise):
    """A backbone with norms as after a training."""
    return randomise(random_backbone({**CONFIGS[kind], **COMMON}))


def impulse_response(mixer, channels):
    """What a depthwise convolution makes of a single pixel, its bias taken off."""
    image = torch.zeros(1, channels, 23, 23)
    offset = mixer(image)
    image[..., 11, 11] = 1
    return (mixer(image) - offset)[0].flip(-2, -1)


@torch.no_grad()
def check_kernels(backbone, parts):
    """The kernels are those that the mixers convolve with."""
    for stage in range(2):
        kernels = stage_kernels(backbone, stage)
        assert len(kernels.blocks) == SIZES['depths'][stage]
        assert kernels.width == SIZES['channels'][stage]
        for block in kernels.blocks:
            assert [part.name for part in block.parts] == parts
            assert block.size == SIZES['kernel_sizes'][stage]
            mixer = backbone.get_submodule(f'{block.name}.mixer')
            response = impulse_response(mixer, kernels.width)
            kernel, reach = block.kernel(), block.size // 2
            inner = response[: len(kernel), 11 - reach : 12 + reach]
            inner = inner[..., 11 - reach : 12 + reach]
            torch.testing.assert_close(kernel, inner, rtol=1e-4, atol=1e-6)
            # Nothing is left out: all of the response is in the kernel.
            assert response[: len(kernel)].abs().sum() == pytest.approx(
                kernel.abs().sum().item(), rel=1e-4
            )


def test_kernels_of_trained_and_deployed_blocks(kind, trained):
    check_kernels(trained, PARTS[kind])
    before = [block.kernel() for block in stage_kernels(trained, 1).blocks]
    is_pelk = kind.startswith('pelk')
    assert (stage_kernels(trained, 1).embedding is not None) == is_pelk
    trained.switch_to_deploy()
    # Small kernels are in the large ones, and no norm or embedding is left.
    check_kernels(trained, [name for name in PARTS[kind] if name != 'small'])
    after = stage_kernels(trained, 1)
    for old, new in zip(before, after.blocks, strict=True):
        torch.testing.assert_close(old, new.kernel(), rtol=1e-4, atol=1e-6)
    assert after.embedding is None
    assert any('embedding' in note for note in after.notes) == is_pelk


def test_norms_are_noted(kind, trained):
    notes = ' '.join(stage_kernels(trained, 0).notes)
    assert ('folded in' in notes) == (kind != 'pelk')


def test_norm_that_depends_on_its_input(randomise):
    cfg = {**CONFIGS['slak'], **COMMON, 'norm_cfg': dict(type='GN', num_groups=2)}
    backbone = random_backbone(cfg)
    kernels = stage_kernels(backbone, 0)
    (block,) = kernels.blocks
    weight = backbone.stages[0].blocks[0].mixer.vertical.conv.weight
    assert torch.equal(block.parts[0].weight, weight.squeeze(1))
    assert (
        'without the norm after the convolution, which is a GroupNorm'
        in (kernels.notes[0])
    )


def test_taps_of_stripes():
    backbone = random_backbone({**CONFIGS['slak'], **COMMON})
    (block,) = stage_kernels(backbone, 0).blocks
    taps = block.taps()
    assert taps.sum() == 2 * 5 * 11 - 5 * 5
    assert not taps[0, 0]
    assert taps[0, 5]
    assert taps[5, 0]
    assert block.taps(block.parts[2]).sum() == 25
    assert torch.equal(block.shares(), taps.float())


def test_channels_of_the_largest_kernels():
    backbone = random_backbone({**CONFIGS['pelk'], **COMMON})
    with torch.no_grad():
        weight = backbone.stages[0].blocks[0].mixer.large.conv.weight
        weight.zero_()
        weight[2] = 1
        weight[1] = 2
    (block,) = stage_kernels(backbone, 0).blocks
    # Equal norms are in the order of the channels.
    assert block.largest(9) == [1, 2, 0]


@pytest.mark.parametrize('name', ['pelk', 'slak', 'replknet'])
def test_densities_and_shares(name):
    backbone = random_backbone({**CONFIGS[name], **COMMON})
    assert not stage_kernels(backbone, 1).sparse
    mixer = next(
        block.mixer
        for block in backbone.stages[1].blocks[1:]
        if hasattr(block, 'mixer')
    )
    conv = next(iter(mixer.children())).conv
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[: conv.channels // 2] = 1
    kernels = stage_kernels(backbone, 1)
    assert kernels.sparse
    (number,) = (
        i
        for i, block in enumerate(backbone.stages[1].blocks)
        if getattr(block, 'mixer', None) is mixer
    )
    first = PARTS[name][0]
    assert kernels.densities[first][number] == 0.5
    assert kernels.densities[first][0] == 1
    assert kernels.densities['pointwise_conv1'][number] == 1
    corner = kernels.blocks[-1].shares()[0, 4 if name == 'slak' else 0]
    assert corner.item() == pytest.approx((conv.channels // 2) / conv.channels)
    if isinstance(conv, PeripheralConv2d):
        assert conv.channels == 6


def files(backbone, folder, key='state_dict', prefix=''):
    state = {f'{prefix}{n}': v.clone() for n, v in backbone.state_dict().items()}
    path = folder / 'weights.pth'
    torch.save({key: state} if key else state, path)
    return path


#: What the names of a file start with, another for each kind.
PREFIXES = dict(
    zip(CONFIGS, ['', 'backbone.', 'module.backbone.', '', 'backbone.'], strict=True)
)


def test_loading_any_form(kind, trained, tmp_path):
    prefix = PREFIXES[kind]
    cfg = {**CONFIGS[kind], **COMMON}
    expected = stage_kernels(trained, 1)
    loaded = load_backbone(cfg, 'backbone', files(trained, tmp_path, prefix=prefix))
    for form in ('trained', 'deployed'):
        found = stage_kernels(loaded, 1)
        assert len(found.blocks[0].parts) == len(
            stage_kernels(trained, 1).blocks[0].parts
        )
        for a, b in zip(expected.blocks, found.blocks, strict=True):
            torch.testing.assert_close(a.kernel(), b.kernel(), rtol=1e-4, atol=1e-6)
        if form == 'trained':
            trained.switch_to_deploy()
            path = files(trained, tmp_path, prefix=prefix)
            loaded = load_backbone(cfg, 'backbone', path)


@pytest.mark.parametrize('name', ['slak', 'replknet'])
def test_merged_weights_and_configs_of_other_forms(name, tmp_path):
    cfg = {**CONFIGS[name], **COMMON}
    merged = random_backbone({**cfg, 'small_kernel_merged': True})
    path = files(merged, tmp_path)
    for form in ({}, dict(deploy=True)):
        found = load_backbone({**cfg, **form}, 'backbone', path)
        assert len(stage_kernels(found, 0).blocks[0].parts) == len(PARTS[name]) - 1
    path = files(random_backbone(cfg), tmp_path)
    found = load_backbone({**cfg, 'deploy': True}, 'backbone', path)
    assert len(stage_kernels(found, 0).blocks[0].parts) == len(PARTS[name])


def test_averages_alone(tmp_path):
    backbone = random_backbone({**CONFIGS['pelk'], **COMMON})
    path = files(backbone, tmp_path, key='model_ema')
    load_backbone({**CONFIGS['pelk'], **COMMON}, 'backbone', path)


def test_weights_that_do_not_fit(tmp_path):
    cfg = {**CONFIGS['pelk'], **COMMON}
    path = files(random_backbone({**CONFIGS['slak'], **COMMON}), tmp_path)
    with pytest.raises(CheckpointError, match='weights.pth: .*does not fit'):
        load_backbone(cfg, 'backbone', path)
    backbone = random_backbone(cfg)
    with torch.no_grad():
        backbone.stages[0].position_embedding[0, 0, 0] = float('nan')
    with pytest.raises(CheckpointError, match='weights.pth: .*NaN'):
        load_backbone(cfg, 'backbone', files(backbone, tmp_path))
    (tmp_path / 'weights.pth').write_bytes(b'')
    with pytest.raises(CheckpointError, match='weights.pth is empty'):
        load_backbone(cfg, 'backbone', tmp_path / 'weights.pth')


def test_random_weights_are_the_same_each_time():
    cfg = {**CONFIGS['pelk'], **COMMON}
    state = torch.get_rng_state()
    first, second = random_backbone(cfg), random_backbone(cfg)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_names_of_architectures():
    assert arch_config('PeLK-tiny-101') == dict(type='PeLK', arch='tiny-101')
    assert arch_config('replknet-31b') == dict(type='RepLKNet', arch='31B')
    with pytest.raises(ValueError, match="'vit'; choose one of pelk-tiny, "):
        arch_config('vit')


def test_backbone_of_a_model():
    model = dict(
        type='Wrapper',
        teacher=dict(type='ResNet'),
        students=[dict(type='Model', backbone=CONFIGS['slak'])],
    )
    cfg, name = find_backbone(Config(dict(model=model)))
    assert cfg['arch'] == SIZES
    assert name == 'students.0.backbone'
    empty = SimpleNamespace(get=dict(model=dict(type='ResNet')).get, filename='a.py')
    with pytest.raises(ValueError, match='a.py has no backbone of PeLK, SLaK, RepLK'):
        find_backbone(empty)
