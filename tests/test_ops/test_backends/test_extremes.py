"""Half precision at the edges of its range: nothing overflows before the result does.

All sums are kept in float32, so that in float16 a result is infinite only where its
exact value rounds to infinity. bfloat16 has float32's range; there is no room above it,
and the tests stay below `BFLOAT16_LARGE`, which `docs/performance.md` quotes.

Every backend that runs on the CPU; that of triton where TRITON_INTERPRET=1:

    TRITON_INTERPRET=1 python -m pytest test_extremes.py -k triton
"""

import functools

import pytest
import torch

from pelk_mm import ops
from pelk_mm.ops import choose, reference

GRID = (4, 2, 1, 1, 1, 2, 4)
#: Shape of the maps, size of the weights, sharing grid.
PROBLEMS = {
    'peripheral': ((2, 2, 17, 19), (7, 7), GRID),
    'dense': ((2, 2, 16, 18), (13, 13), None),
    'stripe': ((2, 2, 21, 11), (21, 3), None),
}
BFLOAT16_LARGE = 1e30
DTYPES = (torch.float16, torch.bfloat16)
KINDS = ('maximum', 'both signs', 'beyond', 'smallest')
NAMES = [name for name in choose.BACKENDS if name in ops.available_backends()]


def signs(shape):
    """Bands of one sign: sums are large on the way to a small one."""
    return torch.where(torch.arange(shape[2])[:, None] % 9 < 5, 1.0, -1.0).expand(shape)


def extremes(shape, size, dtype, kind):
    """Input, weight in float32, and gradient to the output.

    Args:
        shape: Of the maps.
        size: Of the weights.
        dtype: Of the maps.
        kind: 'maximum': sums of inputs are beyond the range by as much as the kernel
            has taps, results are not. 'both signs': products are too, and cancel.
            'beyond': so are the results. 'smallest': subnormal inputs and gradients.
    """
    info = torch.finfo(dtype)
    high = info.max if dtype == torch.float16 else BFLOAT16_LARGE
    weight = torch.linspace(0.5, 1, shape[1] * size[0] * size[1])
    weight = weight.view(shape[1], *size)
    x = torch.full(shape, high)
    if kind == 'maximum':
        weight = weight / (15 * 15 if size == (7, 7) else size[0] * size[1])
    elif kind == 'both signs':
        x, weight = x * signs(shape), weight / 16
    elif kind == 'smallest':
        x, weight = torch.full(shape, info.smallest_normal / 64), weight * 1e4
    x = x.to(dtype)
    upstream = x.sign() if dtype == torch.bfloat16 and kind != 'smallest' else x
    # So that rounding the weights, which triton's kernels do, changes nothing.
    return x, weight.to(dtype).float(), upstream


def run(x, weight, upstream, grid, name):
    """Output and gradients to input and weight, as under autocast."""
    leaves = [x.float().requires_grad_(), weight.clone().requires_grad_()]
    with torch.autocast('cpu', x.dtype):
        if grid is None:
            out = ops.depthwise_conv2d(*leaves, backend=name)
        else:
            out = ops.peripheral_conv2d(*leaves, grid, backend=name)
    assert out.dtype == x.dtype
    return out.detach(), *torch.autograd.grad(out, leaves, upstream)


def exact(x, weight, upstream, grid):
    """The same in float64."""
    leaves = [x.double().requires_grad_(), weight.double().requires_grad_()]
    kernel = leaves[1] if grid is None else reference.expand_kernel(leaves[1], grid)
    out = reference.depthwise_conv2d(leaves[0], kernel)
    return out.detach(), *torch.autograd.grad(out, leaves, upstream.double())


@functools.cache
def case(problem, dtype, kind):
    """Operands, exact results, and for each result the sum of all magnitudes."""
    shape, size, grid = PROBLEMS[problem]
    operands = extremes(shape, size, dtype, kind)
    magnitudes = exact(*(tensor.abs() for tensor in operands), grid)
    scales = [magnitude.max().item() for magnitude in magnitudes]
    return operands, grid, exact(*operands, grid), scales


@pytest.mark.parametrize('backend', NAMES)
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize('problem', PROBLEMS)
def test_results_are_infinite_only_where_they_have_to_be(backend, problem, dtype, kind):
    operands, grid, wanted, scales = case(problem, dtype, kind)
    found = run(*operands, grid, backend)
    # The gradient to the weight is float32's, those of the maps are rounded.
    types = (dtype, dtype, torch.float32)
    for each, truth, scale, kept in zip(found, wanted, scales, types, strict=True):
        assert not each.isnan().any()
        info = torch.finfo(kept)
        # Next to the largest number, the last bit of a sum decides.
        assert each[truth.abs() < 0.99 * info.max].isfinite().all()
        assert each[truth.abs() > 1.01 * info.max].isinf().all()
        finite = each.isfinite() & (truth.abs() < 0.99 * info.max)
        torch.testing.assert_close(
            each[finite].double(),
            truth[finite],
            rtol=0.51 * info.eps,
            atol=3e-6 * scale + info.smallest_normal * info.eps,
        )


def test_the_cases_are_extreme():
    """In each, sums that are not kept in float32 would overflow or vanish."""
    for problem, (_, size, grid) in PROBLEMS.items():
        for kind in KINDS:
            (x, weight, _), _, (out, grad, _), (scale, *_) = case(
                problem, torch.float16, kind
            )
            high = torch.finfo(torch.float16).max
            sums = x.abs().max() * (max(grid) if grid else size[0] * size[1])
            infinite = [(maps.abs() > high).any().item() for maps in (out, grad)]
            if kind == 'maximum':
                assert sums > high
                assert infinite == [False, False]
                assert out.max() > 0.5 * high
            elif kind == 'both signs':
                assert scale > high
                assert out.abs().min() < high / 2
            elif kind == 'beyond':
                assert infinite == [True, True]
            else:
                assert 0 < x.max() < torch.finfo(torch.float16).smallest_normal
                assert out.min() > 0
