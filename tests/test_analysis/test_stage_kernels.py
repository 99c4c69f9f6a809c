import pytest
import torch

from pelk_mm.analysis.open_backbone import random_backbone
from pelk_mm.analysis.stage_kernels import stage_kernels
from pelk_mm.layers import PeripheralConv2d

from .narrow_kernels import COMMON, CONFIGS, PARTS, SIZES


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
