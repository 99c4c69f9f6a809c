"""Large convolutions as other runtimes get them, held to our operators."""

import pytest
import torch

from pelk_mm.backbones import PeLK, RepLKNet, SLaK
from pelk_mm.conversion.factored import (
    CHANNEL_MULTIPLE,
    DenseConv2d,
    FactoredConv2d,
    split_grid,
    use_torch_convolutions,
)
from pelk_mm.layers import make_sharing_grid
from pelk_mm.ops import peripheral_conv2d
from pelk_mm.ops.reference import expand_kernel

GRIDS = {
    '51': make_sharing_grid(51, 2),
    '67': make_sharing_grid(67, 3),
    '69, outermost cells of 1': make_sharing_grid(69, 3),
    '101': make_sharing_grid(101, 3),
    'coarse centre': (5, 5, 5),
    'no cell below': (4, 1, 4),
    'other': (7, 5, 4, 1, 4, 5, 7),
}
#: Maps, most of them smaller than the kernels.
MAPS = [(20, 33), (3, 70), (1, 1)]


@pytest.mark.parametrize('grid', GRIDS.values(), ids=list(GRIDS))
def test_boxes_cover_the_kernel_once(grid):
    covered = [
        (offset + step, cell)
        for run in split_grid(grid)
        for offset, cell in zip(run.offsets, run.cells, strict=True)
        for step in range(run.size)
    ]
    positions = range(-(sum(grid) // 2), sum(grid) // 2 + 1)
    cells = [cell for cell, size in enumerate(grid) for _ in range(size)]
    assert sorted(covered) == list(zip(positions, cells, strict=True))


def test_number_of_products():
    """What the form is for: 51 x 51 positions in a few hundred products."""
    conv = FactoredConv2d(torch.ones(4, 13, 13), GRIDS['51'], None)
    products = sum(p[0].numel() for name, p in conv.named_parameters())
    assert products < 51 * 51 / 8


@pytest.mark.parametrize('spare', [0, 2, 7])
@pytest.mark.parametrize('grid', GRIDS.values(), ids=list(GRIDS))
def test_forms_equal_the_operator(grid, spare):
    channels = 5
    weight = torch.randn(channels, len(grid), len(grid))
    bias = torch.randn(channels)
    forms = [
        FactoredConv2d(weight, grid, bias, spare),
        DenseConv2d(expand_kernel(weight, grid), bias, spare),
    ]
    for height, width in MAPS:
        x = torch.randn(2, channels + spare, height, width)
        wanted = peripheral_conv2d(x, weight, grid, bias, partial=True)
        for form in forms:
            got = form(x, None, True)
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * sum(grid))
            assert torch.equal(got[:, channels:], x[:, channels:])


def test_channels_are_a_multiple():
    """Channels that pass do it; zeros do where too few pass."""
    for spare, passing in ((0, 0), (2, 0), (3, 3), (9, 3)):
        conv = DenseConv2d(torch.randn(5, 3, 3), None, spare)
        assert len(conv.weight) % CHANNEL_MULTIPLE == 0
        assert (conv.passing, conv.zeros) == (passing, 3 - passing)


def test_asymmetric_grid_is_refused():
    with pytest.raises(ValueError, match=r'sharing_grid \(4, 1, 2\) is not symmetric'):
        split_grid((4, 1, 2))


SIZES = dict(channels=(8, 12, 10, 16), depths=(1, 1, 2, 1))
MODELS = {
    'pelk': lambda: PeLK(dict(SIZES, kernel_sizes=(31, 19, 15, 7), central_radius=1)),
    'pelk-small-kernel': lambda: PeLK(
        dict(SIZES, kernel_sizes=(31, 19, 15, 7), central_radius=1, small_kernel=5),
        norm_cfg=dict(type='BN'),
    ),
    'pelk-asymmetric': lambda: PeLK(
        dict(
            SIZES,
            kernel_sizes=(13, 9, 9, 7),
            central_radius=1,
            sharing_grids=((8, 1, 4), (4, 1, 4), (3, 3, 3), (1, 1, 3, 1, 1)),
        )
    ),
    'slak': lambda: SLaK(dict(SIZES, kernel_sizes=(15, 13, 11, 7))),
    'replknet': lambda: RepLKNet(
        dict(SIZES, kernel_sizes=(15, 13, 11, 7), small_kernel=5)
    ),
}


@pytest.mark.parametrize('deployed', [False, True])
@pytest.mark.parametrize('kind', MODELS)
@torch.no_grad()
def test_models_stay_the_same(kind, deployed, randomise):
    model = randomise(MODELS[kind]()).eval()
    images = torch.randn(2, 3, 64, 96)
    wanted = model(images)
    if deployed:
        model.switch_to_deploy()
    done = use_torch_convolutions(model, factored=True)
    # Kernels whose cells are below MIN_BOX stay dense, as all others do.
    factored = {
        'pelk': [31, 19, 15, 15],
        'pelk-small-kernel': [31, 19, 15, 15],
        'pelk-asymmetric': [9],
    }
    assert done.factored == factored.get(kind, [])
    assert done.dense
    for ours, theirs in zip(model(images), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
