"""One contract for every backend: all that it accepts, held to the reference.

A backend gets these tests by standing in `choose.BACKENDS`; `test_toy_backend.py` shows
it with one of a few lines.
"""

import functools

import pytest
import torch

from pelk_mm import ops
from pelk_mm.ops import choose, reference
from pelk_mm.ops.backends import cpu
from pelk_mm.ops.backends.cpu import library
from pelk_mm.ops.problem import Problem

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: Each backend that runs on the CPU, the compiled ones once per instruction set of this
#: processor. That of triton does where TRITON_INTERPRET=1.
VARIANTS = [
    (name, version)
    for name, backend in choose.BACKENDS.items()
    for version in (cpu.instruction_sets() if backend in cpu.BACKENDS else [None])
    if any(name in ops.available_backends(dtype=dtype) for dtype in DTYPES)
]
PAPER_GRID = (9, 8, 4, 2, 1, 1, 1, 1, 1, 2, 4, 8, 9)

#: Shape of the input, size of the kernel, sharing grid.
PROBLEMS = {
    'dense': ((2, 3, 20, 17), (9, 5), None),
    'square': ((2, 5, 9, 8), (5, 5), None),
    'many channels': ((1, 37, 6, 7), (7, 7), None),
    'tall stripe': ((2, 3, 11, 13), (21, 3), None),
    'wide stripe': ((2, 3, 11, 13), (3, 31), None),
    'one tap': ((2, 3, 5, 4), (1, 1), None),
    'one pixel': ((2, 2, 1, 1), (7, 7), None),
    'kernel larger than the map': ((1, 2, 4, 30), (51, 51), None),
    'grid': ((2, 3, 20, 17), (7, 7), (3, 2, 1, 1, 1, 2, 3)),
    'grid of the paper': ((1, 2, 28, 26), (13, 13), PAPER_GRID),
    'asymmetric grid': ((2, 3, 11, 13), (7, 7), (4, 1, 1, 1, 1, 2, 5)),
    'grid without a fine centre': ((2, 3, 11, 13), (7, 7), (9, 8, 4, 2, 4, 8, 10)),
    'grid larger than the map': ((1, 2, 3, 5), (7, 7), (9, 8, 4, 2, 4, 8, 10)),
}


@pytest.fixture(params=VARIANTS, ids=lambda variant: '-'.join(filter(None, variant)))
def backend(request, monkeypatch):
    name, version = request.param
    monkeypatch.delenv(choose.ENVIRONMENT_VARIABLE, raising=False)
    if version is not None:
        monkeypatch.setenv(library.ENVIRONMENT_VARIABLE, version)
    return name


@pytest.fixture(params=PROBLEMS)
def case(request):
    return PROBLEMS[request.param]


def channel_slice(x):
    """The first channels of a channels_last map that has more."""
    n, c, h, w = x.shape
    whole = x.new_zeros(n, c + 3, h, w).contiguous(memory_format=torch.channels_last)
    whole[:, :c] = x
    return whole[:, :c]


def strided(x):
    """Of neither layout."""
    return x.transpose(2, 3).contiguous().transpose(2, 3)


LAYOUTS = {
    'contiguous': lambda x: x.contiguous(),
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'a slice of channels': channel_slice,
    'a slice of planes': lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    'strided': strided,
}


def operands(shape, kernel, dtype):
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (shape[1], *kernel), (shape[1],), shape)
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def run(x, weight, bias, upstream, grid, name):
    """Output and gradients to input, weight and bias."""
    leaves = [leaf.detach().requires_grad_() for leaf in (x, weight, bias)]
    if grid is None:
        out = ops.depthwise_conv2d(*leaves, backend=name)
    else:
        out = ops.peripheral_conv2d(leaves[0], leaves[1], grid, leaves[2], backend=name)
    return out.detach(), *torch.autograd.grad(out, leaves, upstream)


@functools.cache
def expected(shape, kernel, grid, dtype):
    """The same in float64 from the definition, once for all backends."""
    *leaves, upstream = operands(shape, kernel, dtype)
    leaves = [leaf.double().requires_grad_() for leaf in leaves]
    kernel = leaves[1] if grid is None else reference.expand_kernel(leaves[1], grid)
    out = reference.depthwise_conv2d(leaves[0], kernel, leaves[2])
    return out.detach(), *torch.autograd.grad(out, leaves, upstream.double())


def assert_close(found, wanted, dtype):
    """Equal up to sums in float32 (or float64), and one rounding of the result."""
    assert found.dtype == dtype
    sums = 2e-6 if dtype != torch.float64 else 1e-13
    rounding = 0.51 * torch.finfo(dtype).eps
    scale = wanted.abs().max().item()
    torch.testing.assert_close(
        found.double(), wanted, rtol=rounding, atol=sums * max(scale, 1.0)
    )


def accepts(name, x, weight, grid):
    return choose.BACKENDS[name].why_not(Problem.of(x, weight, grid)) is None


@pytest.mark.parametrize('dtype', DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_values_gradients_and_layout(backend, case, dtype):
    """Whatever the layout of the input, which the output and its gradient keep."""
    shape, kernel, grid = case
    x, weight, bias, upstream = operands(shape, kernel, dtype)
    if not accepts(backend, x, weight, grid):
        with pytest.raises(ValueError, match=f'the backend {backend!r} cannot'):
            run(x, weight, bias, upstream, grid, backend)
        return
    wanted = expected(shape, kernel, grid, dtype)
    for name, lay_out in LAYOUTS.items():
        layout = torch.contiguous_format
        if name in ('channels_last', 'a slice of channels'):
            layout = torch.channels_last
        found = run(lay_out(x), weight, bias, lay_out(upstream), grid, backend)
        for each, truth in zip(found, wanted, strict=True):
            assert_close(each, truth, dtype)
        for each in found[:2]:
            assert each.is_contiguous(memory_format=layout), name


@pytest.mark.parametrize('frozen', [0, 1])
def test_a_gradient_that_is_not_wanted_changes_nothing(backend, case, frozen):
    shape, kernel, grid = case
    x, weight, _, upstream = operands(shape, kernel, torch.float32)
    both = run(x, weight, torch.zeros(shape[1]), upstream, grid, backend)[1:3]
    leaves = [x, weight]
    leaves[1 - frozen].requires_grad_()
    out = (
        ops.depthwise_conv2d(*leaves, backend=backend)
        if grid is None
        else ops.peripheral_conv2d(*leaves, grid, backend=backend)
    )
    (grad,) = torch.autograd.grad(out, leaves[1 - frozen], upstream)
    assert torch.equal(grad, both[1 - frozen])


@pytest.mark.parametrize('shape', [(0, 3, 8, 8), (2, 3, 0, 8)])
def test_empty_maps(backend, shape):
    x, weight, bias, upstream = operands(shape, (7, 7), torch.float32)
    out, grad_x, grad_weight, grad_bias = run(x, weight, bias, upstream, None, backend)
    assert out.shape == grad_x.shape == shape
    assert not grad_weight.any()
    assert not grad_bias.any()


def test_second_derivatives(backend):
    shape, kernel, grid = PROBLEMS['grid']
    x, weight, *_ = operands(shape, kernel, torch.float32)

    def penalty(leaves, name):
        out = ops.peripheral_conv2d(*leaves, grid, backend=name).square().sum()
        grads = torch.autograd.grad(out, leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)

    exact = penalty([t.double().requires_grad_() for t in (x, weight)], 'nchw')
    for grad, wanted in zip(
        penalty([t.requires_grad_() for t in (x, weight)], backend), exact, strict=True
    ):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(grad.double(), wanted, rtol=0, atol=1e-5 * scale)


def test_one_thread_or_two_give_the_same_bits(backend):
    shape, kernel, grid = PROBLEMS['grid of the paper']
    arguments = operands(shape, kernel, torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(run(*arguments, grid, backend))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))


def test_costs_grow_with_the_work(backend):
    """A wrong sign in a table would show here."""
    for kernel in ((5, 5), (13, 13), (31, 31), (5, 51)):
        for passes in (('forward',), ('input',), ('weight',), ('input', 'weight')):
            before = 0.0
            for size in (32, 64, 128, 256):
                problem = Problem((2, 32, size, size), kernel)
                cost = choose.BACKENDS[backend].cost(problem, passes)
                assert cost > before
                before = cost


def test_costs_are_unknown_where_nobody_measured(backend):
    problem = Problem((2, 32, 64, 64), (5, 5), device='cuda')
    if choose.BACKENDS[backend].why_not(problem) is None:
        assert choose.BACKENDS[backend].cost(problem, ('forward',)) == float('inf')
