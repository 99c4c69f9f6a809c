"""The triton kernels under triton's interpreter, on CPU tensors.

Run by `test_triton.py`, in a process of its own: TRITON_INTERPRET has to be set before
triton is imported. By hand, with the whole contract:

    cd tests/test_ops/test_backends
    TRITON_INTERPRET=1 python -m pytest -m '' interpreted_triton.py
    TRITON_INTERPRET=1 python -m pytest test_contract.py -k triton
"""

import pytest
import torch

from pelk_mm import ops
from pelk_mm.backbones import PeLK, RepLKNet, SLaK
from pelk_mm.ops import choose, reference
from pelk_mm.ops.backends.triton import availability, plan, variants
from pelk_mm.ops.backends.triton.backend import Triton

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Has box sums of 2 and of 4 rows.
GRID = (4, 2, 1, 1, 1, 2, 4)


def operands(shape, kernel, dtype):
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (shape[1], *kernel), (shape[1],), shape)
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def run(x, weight, bias, upstream, grid, name='triton'):
    """Output and gradients to input, weight and bias."""
    leaves = [leaf.detach().requires_grad_() for leaf in (x, weight, bias)]
    if grid is None:
        out = ops.depthwise_conv2d(*leaves, backend=name)
    else:
        out = ops.peripheral_conv2d(leaves[0], leaves[1], grid, leaves[2], backend=name)
    return out.detach(), *torch.autograd.grad(out, leaves, upstream)


def expected(x, weight, bias, upstream, grid):
    leaves = [leaf.detach().double().requires_grad_() for leaf in (x, weight, bias)]
    kernel = leaves[1] if grid is None else reference.expand_kernel(leaves[1], grid)
    out = reference.depthwise_conv2d(leaves[0], kernel, leaves[2])
    return out.detach(), *torch.autograd.grad(out, leaves, upstream.double())


def check(x, weight, bias, upstream, grid, name='triton'):
    """Equal up to sums in float32, and one rounding of the result."""
    found = run(x, weight, bias, upstream, grid, name)
    wanted = expected(x, weight, bias, upstream, grid)
    for each, truth in zip(found, wanted, strict=True):
        scale = max(truth.abs().max().item(), 1.0)
        rounding = 0.51 * torch.finfo(each.dtype).eps
        torch.testing.assert_close(
            each.double(), truth, rtol=rounding, atol=2e-6 * scale
        )
    return found


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.delenv(choose.ENVIRONMENT_VARIABLE, raising=False)
    assert availability.interpreted()


@pytest.mark.parametrize(
    ('capability', 'variant'),
    [(number, i) for number, tiles in plan.TILES.items() for i in range(len(tiles))],
)
def test_every_variant(capability, variant, monkeypatch):
    """More than one tile of columns, images that share a tile of rows."""
    backend = Triton('variant', variant)
    monkeypatch.setitem(choose.BACKENDS, 'variant', backend)
    monkeypatch.setattr(availability, 'capability', lambda: capability)
    dtype = DTYPES[variant % 3]
    columns = plan.TILES[capability][variant].columns
    check(*operands((2, 1, 5, columns + 6), (7, 7), dtype), GRID, 'variant')


@pytest.mark.parametrize('dtype', DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    ('shape', 'kernel', 'grid'),
    [
        ((2, 1, 11, 13), (7, 7), (4, 1, 1, 1, 1, 2, 5)),
        ((1, 1, 4, 8), (7, 7), (9, 8, 4, 2, 4, 8, 10)),
        ((1, 2, 9, 8), (9, 3), None),
        ((1, 2, 8, 9), (3, 9), None),
        ((2, 1, 1, 1), (5, 5), None),
        ((1, 2, 5, 4), (1, 1), None),
    ],
    ids=['asymmetric', 'larger than the map', 'tall', 'wide', 'pixel', 'one tap'],
)
def test_problems(shape, kernel, grid, dtype):
    check(*operands(shape, kernel, dtype), grid)


def layouts(x):
    n, c, h, w = x.shape
    wider = torch.cat([x, x], 1)
    channels_last = torch.channels_last
    return {
        'contiguous': x,
        'channels_last': x.contiguous(memory_format=channels_last),
        'slice of channels': wider.contiguous(memory_format=channels_last)[:, :c],
        'slice of planes': wider[:, :c],
        'strided': x.transpose(2, 3).contiguous().transpose(2, 3),
        'of no axis': torch.stack([x, x], -1)[..., 0],
    }


@pytest.mark.parametrize('kernel', [(3, 1), (1, 3)])
@pytest.mark.parametrize('number', range(6))
def test_layouts_of_input_and_gradient(number, kernel):
    """Of vectors and of single elements, in a map of columns and in one of rows."""
    x, weight, bias, upstream = operands((1, 8, 8, 16), kernel, torch.bfloat16)
    name, x = list(layouts(x).items())[number]
    upstream = list(layouts(upstream).values())[(number + 1) % 6]
    out, grad_x, *_ = check(x, weight, bias, upstream, None)
    last = torch.channels_last
    assert out.is_contiguous(
        memory_format=last if 'channels' in name else torch.contiguous_format
    )
    assert grad_x.is_contiguous(
        memory_format=last if number in (0, 1) else torch.contiguous_format
    )


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('grid', [None, GRID], ids=['dense', 'shared'])
def test_first_channels_are_written_into_their_place(grid, layout, monkeypatch):
    """Forward and gradient to the input, without a map of their own in between."""
    x, weight, bias, upstream = operands((1, 5, 6, 9), (7, 7), torch.bfloat16)
    weight, bias = weight[:3], bias[:3]
    x, upstream = (each.contiguous(memory_format=layout) for each in (x, upstream))
    first = [each[:, :3].contiguous(memory_format=layout) for each in (x, upstream)]
    wanted = run(first[0], weight, bias, first[1], grid)

    def elsewhere(*arguments):
        raise AssertionError('computed into a map of its own')

    for name in ('forward', 'backward'):
        monkeypatch.setattr(Triton, name, elsewhere)
    leaves = [leaf.detach().requires_grad_() for leaf in (x, weight, bias)]
    settings = dict(partial=True, backend='triton')
    if grid is None:
        out = ops.depthwise_conv2d(*leaves, **settings)
    else:
        out = ops.peripheral_conv2d(leaves[0], leaves[1], grid, leaves[2], **settings)
    found = out, *torch.autograd.grad(out, leaves, upstream)
    for each, part, passed in zip(
        found, wanted, (x, upstream, None, None), strict=True
    ):
        assert torch.equal(each if passed is None else each[:, :3], part)
        if passed is not None:
            assert torch.equal(each[:, 3:], passed[:, 3:])
            assert each.is_contiguous(memory_format=layout)


def test_scratch_for_a_part_of_the_images_and_channels(monkeypatch):
    monkeypatch.setattr(plan, 'SCRATCH_BYTES', 4000)
    monkeypatch.setattr(variants, 'SPLIT_BLOCKS', 64)
    check(*operands((3, 2, 10, 9), (7, 7), torch.float16), GRID)


def test_more_lags_and_terms_than_a_tile_has():
    check(*operands((1, 1, 17, 40), (33, 79), torch.bfloat16), None)


def test_sums_beyond_the_range_of_float16():
    x = torch.full((1, 1, 16, 16), 6e4, dtype=torch.float16)
    weight = torch.full((1, 7, 7), 1e-4, dtype=torch.float16)
    found = ops.peripheral_conv2d(x, weight, GRID, backend='triton')
    kernel = reference.expand_kernel(weight.double(), GRID)
    wanted = reference.depthwise_conv2d(x.double(), kernel)
    torch.testing.assert_close(found.double(), wanted, rtol=5e-4, atol=0)


def test_sums_below_the_normal_range_of_float16():
    """Where the second part of a sum would be less than the smallest number."""
    x, weight, bias, upstream = operands((1, 1, 16, 16), (7, 7), torch.float16)
    x, bias = (x * 1e-6).half(), torch.zeros_like(bias)
    found = run(x, weight * 100, bias, upstream, GRID)[0]
    wanted = expected(x, weight * 100, bias, upstream, GRID)[0]
    torch.testing.assert_close(found.double(), wanted, rtol=5e-4, atol=2e-7)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_what_is_small_in_a_column_keeps_its_bits(dtype):
    """A running sum down the column would round it to the large number's last bit."""
    x, weight, bias, _ = operands((1, 1, 40, 16), (7, 7), dtype)
    x[:, :, 0] = 1e6
    found = ops.peripheral_conv2d(x, weight, GRID, bias, backend='triton')
    kernel = reference.expand_kernel(weight.double(), GRID)
    wanted = reference.depthwise_conv2d(x.double(), kernel, bias.double())
    below = slice(8, None)  # these windows do not see the first row
    torch.testing.assert_close(
        found[:, :, below].double(),
        wanted[:, :, below],
        rtol=0.51 * torch.finfo(dtype).eps,
        atol=2e-6 * wanted[:, :, below].abs().max().item(),
    )


@pytest.mark.parametrize('size', [3, 7])
def test_float32_is_no_less_exact_than_the_direct_convolution(size):
    x, weight, bias, upstream = operands((1, 1, 20, 20), (size, size), torch.float32)
    wanted = expected(x, weight, bias, upstream, None)
    ours, direct = (run(x, weight, bias, upstream, None, n) for n in ('triton', 'nchw'))
    for mine, other, truth in zip(ours[:3], direct[:3], wanted[:3], strict=True):
        errors = [
            (each.double() - truth).square().mean().sqrt() for each in (mine, other)
        ]
        assert errors[0] <= 1.1 * errors[1]


def test_as_an_operator_of_torch():
    x, weight, bias, _ = operands((1, 1, 6, 5), (3, 3), torch.float32)
    x.requires_grad_()
    arguments = (x, weight.requires_grad_(), None, bias, 'triton')
    torch.library.opcheck(torch.ops.pelk_mm.depthwise_conv2d, arguments)


def test_autocast():
    x, weight, bias, _ = operands((1, 2, 8, 8), (5, 5), torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        found = ops.depthwise_conv2d(x, weight, bias, backend='triton')
    assert found.dtype == torch.bfloat16
    wanted = reference.depthwise_conv2d(
        x.bfloat16().double(), weight.bfloat16().double(), bias.double()
    )
    torch.testing.assert_close(found.double(), wanted, rtol=4e-3, atol=1e-5)


@pytest.mark.parametrize(
    ('family', 'with_cp'),
    [
        (PeLK, True),
        pytest.param(SLaK, False, marks=pytest.mark.slow),
        pytest.param(RepLKNet, False, marks=pytest.mark.slow),
    ],
)
def test_training_step_of_two_stages(family, with_cp, monkeypatch):
    arch = dict(channels=[2, 2], depths=[1, 1], kernel_sizes=[7, 5])
    if family is PeLK:  # it convolves 3 of 8 channels
        arch |= dict(channels=[8, 8], central_radius=1)
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def step(name):
        monkeypatch.setenv(choose.ENVIRONMENT_VARIABLE, name)
        torch.manual_seed(0)
        model = family(arch=arch, out_indices=(0, 1), with_cp=with_cp).train()
        loss = sum(out.square().mean() for out in model(images))
        loss.backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        return loss.detach(), *(param.detach() for param in model.parameters())

    for found, wanted in zip(step('triton'), step('nchw'), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_kernel_that_fails_is_told_and_not_tried_again(monkeypatch):
    monkeypatch.setattr(availability, '_failures', {})
    _, products = availability.modules()

    runs = []

    class Broken:
        def __getitem__(self, grid):
            return self.run

        def run(self, *arguments, **constants):
            runs.append(arguments)
            raise RuntimeError('ptxas: no room\nfor the registers')

    monkeypatch.setattr(products, 'convolve', Broken())
    x, weight, bias, _ = operands((1, 1, 6, 5), (3, 3), torch.float32)
    before = choose.BACKENDS['triton'].state()
    for _ in range(2):
        with pytest.raises(ValueError, match='failed to start .*for the registers'):
            ops.depthwise_conv2d(x, weight, bias, backend='triton')
    assert choose.BACKENDS['triton'].state() != before
    assert len(runs) == 1
