"""PeLK from SLaK and RepLKNet: what is copied, what is projected, what is refused."""

import pytest
import torch

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.conversion.infer import build_backbone, infer_backbone
from pelk_mm.conversion.warm_start import project_kernel, start_pelk
from pelk_mm.layers import make_sharing_grid
from pelk_mm.ops import expand_kernel


def infer(model, family):
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    return infer_backbone(shapes, family)


@pytest.mark.parametrize('grid', [(2, 1, 1, 1, 2), (1, 3, 1, 1, 1)])
def test_projection_is_least_squares(grid):
    kernel = torch.randn(3, 1, 7, 7, dtype=torch.float64)
    parameters, error = project_kernel(kernel, grid)
    # One column for each parameter: the kernel that it alone makes.
    cells = torch.eye(25, dtype=torch.float64).view(25, 5, 5)
    basis = expand_kernel(cells, grid).flatten(1).T
    best = torch.linalg.lstsq(basis, kernel.flatten(1).T)
    torch.testing.assert_close(parameters.flatten(1).T, best.solution)
    residual = (basis @ best.solution - kernel.flatten(1).T).square().sum()
    torch.testing.assert_close(error, residual)


def test_projection_of_what_the_grid_makes_is_exact():
    grid = make_sharing_grid(13, 1)
    parameters = torch.randn(4, len(grid), len(grid), dtype=torch.float64)
    projected, error = project_kernel(expand_kernel(parameters, grid), grid)
    torch.testing.assert_close(projected, parameters)
    assert error < 1e-20


@pytest.mark.parametrize('size', [3, 11])
def test_projection_of_other_sizes(size):
    grid = (1,) * 7
    kernel = torch.randn(2, size, size, dtype=torch.float64)
    projected, error = project_kernel(kernel, grid)
    edge = abs(7 - size) // 2
    if size < 7:
        torch.testing.assert_close(projected[:, edge:-edge, edge:-edge], kernel)
        assert projected.count_nonzero() == kernel.numel()
        assert error == 0
    else:
        torch.testing.assert_close(projected, kernel[:, edge:-edge, edge:-edge])
        lost = kernel.square().sum() - projected.square().sum()
        torch.testing.assert_close(error, lost)


@torch.no_grad()
@pytest.mark.parametrize('form', ['stripes', 'dense', 'merged'])
def test_from_slak_mixer_is_the_projected_convolution(small, build, form):
    arch = dict(channels=[8, 16], depths=[1, 2], kernel_sizes=[11, 9])
    if form != 'stripes':
        arch['decomposed'] = False
    model, _ = small('slak', arch=arch, small_kernel_merged=form == 'merged')
    weights = model.state_dict()
    start = start_pelk(weights, infer(model, 'slak'))
    assert start.initial == []
    pelk = build(start.backbone)
    pelk.load_state_dict(start.tensors)
    for name, tensor in start.tensors.items():
        if name.endswith('position_embedding'):
            assert not tensor.any()
        elif '.mixer.' not in name:
            assert tensor is weights[name]
    # The impulse response of SLaK's mixer, without what its norms add, is the kernel.
    for stage, size in ((0, 11), (1, 9)):
        mixer = model.stages[stage].blocks[0].mixer
        width = 8 * (stage + 1)
        impulse = torch.zeros(1, width, size, size)
        impulse[..., size // 2, size // 2] = 1
        dense = (mixer(impulse) - mixer(0 * impulse)).flip(-2, -1)[0, : width * 3 // 8]
        conv = pelk.stages[stage].blocks[0].mixer.large.conv
        expected, _ = project_kernel(dense, conv.sharing_grid)
        torch.testing.assert_close(
            conv.weight.squeeze(1), expected, rtol=1e-4, atol=1e-5
        )
    assert all(0 < error < 1 for error in start.errors)


@torch.no_grad()
def test_kernels_that_fit_the_grid_make_the_same_function(small, build):
    """With kernels the grid can make, PeLK computes its part of SLaK's mixer."""
    arch = dict(channels=[8], depths=[1], kernel_sizes=[11], decomposed=False)
    model, _ = small('slak', arch=arch, out_indices=(0,), small_kernel_merged=True)
    mixer = model.stages[0].blocks[0].mixer
    grid = make_sharing_grid(11, 2)
    mixer.large.weight.copy_(expand_kernel(torch.randn(8, 1, 9, 9), grid))
    mixer.large.bias.zero_()
    start = start_pelk(model.state_dict(), infer(model, 'slak'))
    assert start.errors[0] < 1e-6
    pelk = build(start.backbone)
    pelk.load_state_dict(start.tensors)
    x = torch.randn(1, 8, 20, 20)
    ours = pelk.stages[0].blocks[0].mixer(x, *pelk.stages[0].block_args())
    torch.testing.assert_close(ours[:, :3], mixer(x)[:, :3], rtol=1e-4, atol=1e-4)
    assert torch.equal(ours[:, 3:], x[:, 3:])


@torch.no_grad()
def test_from_replknet(small, build):
    model, _ = small('replknet')
    start = start_pelk(model.state_dict(), infer(model, 'replknet'))
    pelk = build(start.backbone)
    result = pelk.load_state_dict(start.tensors, strict=False)
    assert result.missing_keys == start.initial
    assert {name.split('.')[0] for name in start.initial} == {
        'downsample_layers',
        'norm0',
        'norm1',
    }
    # On what LayerNorm and BatchNorm standardise alike the two FFNs agree.
    ffn, block = model.stages[1].blocks[3], pelk.stages[1].blocks[1]
    ffn.pointwise_conv1.pre_norm.running_mean.zero_()
    ffn.pointwise_conv1.pre_norm.running_var.fill_(1)
    x = torch.nn.functional.layer_norm(torch.randn(5, 16), (16,))
    expected = ffn.pointwise_conv2(
        ffn.between(ffn.pointwise_conv1(x[..., None, None]))
    ).flatten(1)
    ours = block.pointwise_conv2(block.act(block.pointwise_conv1(block.norm(x))))
    torch.testing.assert_close(ours * block.gamma, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('cfg', 'arch', 'message'),
    [
        (
            dict(type='RepLKNet', arch='31B'),
            'base',
            r'channels are \[128, 256, 512, 1024\], those of PeLK base \[166, 332',
        ),
        (
            dict(type='SLaK', arch='tiny'),
            'base',
            'channels are .* start the PeLK of the',
        ),
        (
            dict(type='SLaK', arch='tiny'),
            'small',
            r'depths are \[3, 3, 9, 3\], those of PeLK small \[3, 3, 27, 3\]',
        ),
        (
            dict(type='SLaK', arch='tiny'),
            'huge',
            "no arch 'huge' .* choose one of tiny",
        ),
        (dict(type='PeLK', arch='tiny'), '', 'starts only from a SLaK or a RepLKNet'),
    ],
)
def test_refusals(cfg, arch, message):
    with pytest.raises(CheckpointError, match=message):
        start_pelk(build_backbone(cfg).state_dict(), cfg, arch)


def test_wider_large_kernels_are_refused(small):
    arch = dict(
        channels=[8, 16], depths=[1, 1], kernel_sizes=[11, 9], small_kernel=None
    )
    model, _ = small('replknet', arch=arch | dict(dw_ratio=1.5))
    with pytest.raises(CheckpointError, match="12 channels in stage 0, PeLK's 8"):
        start_pelk(model.state_dict(), infer(model, 'replknet'))


@pytest.mark.parametrize(('size', 'suffix'), [('tiny', ''), ('base', '-101')])
def test_named_sizes(size, suffix):
    cfg = dict(type='SLaK', arch=size)
    with pytest.raises(RuntimeError, match='meta'):  # after all shapes have been met
        start_pelk(build_backbone(cfg).state_dict(), cfg, suffix and size + suffix)
