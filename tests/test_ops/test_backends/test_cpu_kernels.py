"""The compiled kernels against the float64 reference, on every instruction set."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pelk_mm.ops import reference
from pelk_mm.ops.backends.cpu import kernels, library
from pelk_mm.ops.problem import Problem

EPSILON = torch.finfo(torch.float32).eps
INSTRUCTION_SETS = list(library.instruction_sets())
FOURIER = ('fft', 'column_fft')
METHODS = ('direct', 'pixels', *FOURIER)
GRID_51 = (9, 8, 4, 2, 1, 1, 1, 1, 1, 2, 4, 8, 9)
GRID_101 = (17, 16, 8, 4, 2, 1, 1, 1, 1, 1, 2, 4, 8, 16, 17)

pytestmark = pytest.mark.skipif(not INSTRUCTION_SETS, reason='kernels are not built')


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request, monkeypatch):
    monkeypatch.setenv(library.ENVIRONMENT_VARIABLE, request.param)
    return request.param


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


def lengths(method, x, row_grid, col_grid):
    if method not in FOURIER:
        return None
    sizes = zip((sum(row_grid), sum(col_grid)), x.shape[2:], strict=True)
    kernel = tuple(min(taps, max(1, 2 * extent - 1)) for taps, extent in sizes)
    vertical, horizontal = Problem(tuple(x.shape), kernel).transform_lengths
    return vertical, horizontal if method == 'fft' else 0


def expand(weight, row_grid, col_grid):
    for axis, grid in ((1, row_grid), (2, col_grid)):
        weight = weight.repeat_interleave(torch.tensor(grid), dim=axis)
    return weight


def share(grad, row_grid, col_grid):
    for axis, grid in ((1, row_grid), (2, col_grid)):
        cells = grad.double().split(grid, axis)
        grad = torch.cat([cell.sum(axis, keepdim=True) for cell in cells], axis)
    return grad.float()


def convolve(method, x, weight, bias, row_grid, col_grid):
    if method == 'pixels':
        kernel = expand(weight, row_grid, col_grid)
        out = kernels.convolve_pixels(x.float(), kernel, bias)
        return kernels.in_format(out.to(x.dtype), torch.contiguous_format)
    if method == 'direct':
        return kernels.convolve(x, expand(weight, row_grid, col_grid), bias)
    transforms = lengths(method, x, row_grid, col_grid)
    return kernels.fourier_convolve(x, weight, bias, row_grid, col_grid, transforms)


def gradients(method, x, grad, weight, row_grid, col_grid):
    """Gradients to the input and to the weights."""
    if method in FOURIER:
        transforms = lengths(method, x, row_grid, col_grid)
        return kernels.fourier_gradients(
            x, grad, weight, row_grid, col_grid, transforms
        )
    flipped = weight.flip(-2, -1)
    grad_x = convolve(method, grad, flipped, None, row_grid[::-1], col_grid[::-1])
    taps = sum(row_grid), sum(col_grid)
    if method == 'pixels':
        grad_weight = kernels.weight_grad_pixels(x.float(), grad.float(), taps)
    else:
        grad_weight = kernels.weight_grad(x, grad, taps)
    return grad_x, share(grad_weight, row_grid, col_grid)


def results(method, x, weight, bias, grad, row_grid, col_grid):
    return (
        convolve(method, x, weight, bias, row_grid, col_grid),
        *gradients(method, x, grad, weight, row_grid, col_grid),
    )


def reference_results(x, weight, bias, grad, row_grid, col_grid):
    """Output and gradients to input and weights, in the dtype of the arguments."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    kernel = expand(weight, row_grid, col_grid)
    out = reference.depthwise_conv2d(x, kernel, bias)
    return out.detach(), *torch.autograd.grad(out, (x, weight), grad)


def error(result, expected):
    return (result.double() - expected).square().mean().sqrt().item()


def assert_as_good_as_direct(x, weight, bias, grad, row_grid, col_grid, slack=0.0):
    """Errors against float64 no larger than those of torch's float32 convolution.

    Where torch sums a handful of terms its error is a fraction of a unit in the last
    place; `slack` units of the sum of the terms' magnitudes are allowed there. That of
    a Fourier transform is about two units of the result whatever the kernel.
    """
    operands = (x, weight, bias, grad)
    exact, magnitudes, direct = (
        reference_results(*values, row_grid, col_grid)
        for values in (
            [t.double() for t in operands],
            [t.double().abs() for t in operands],
            operands,
        )
    )
    for name in INSTRUCTION_SETS:
        for method in METHODS:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(library.ENVIRONMENT_VARIABLE, name)
                ours = results(method, *operands, row_grid, col_grid)
            for result, by_torch, expected, scale in zip(
                ours, direct, exact, magnitudes, strict=True
            ):
                unit = EPSILON * scale.square().mean().sqrt().item()
                allowed = max(error(by_torch, expected), slack * unit)
                if method in FOURIER:
                    norm = expected.square().mean().sqrt().item()
                    allowed = max(allowed, 2.2 * EPSILON * norm)
                assert error(result, expected) <= allowed, (name, method)


def random_problem(shape, rows, cols, seed, offset=0.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=generator)

    x = normal(*shape) + offset
    return x, normal(shape[1], rows, cols), normal(shape[1]), normal(*shape)


@pytest.mark.long
@pytest.mark.parametrize(
    ('grid', 'shape', 'offset'),
    [
        (GRID_51, (1, 2, 70, 65), 0.0),
        (GRID_51, (1, 1, 30, 200), 3.0),
        (GRID_51, (1, 1, 131, 31), 3.0),
        (GRID_101, (1, 1, 90, 60), 0.0),
    ],
)
def test_papers_grids_no_less_accurate_than_direct(grid, shape, offset):
    cells = len(grid)
    problem = random_problem(shape, cells, cells, seed=0, offset=offset)
    # Of an input far from zero mean torch's weight gradient is all but exact.
    assert_as_good_as_direct(*problem, grid, grid, slack=0.1 if offset else 0.0)


@pytest.mark.parametrize('kernel', [(51, 5), (5, 51), (31, 31), (1, 1), (3, 7)])
@pytest.mark.parametrize('shape', [(1, 2, 33, 70), (2, 2, 7, 7), (1, 1, 1, 1)])
def test_dense_kernels_no_less_accurate_than_direct(kernel, shape):
    grids = [(1,) * taps for taps in kernel]
    problem = random_problem(shape, *kernel, seed=1)
    assert_as_good_as_direct(*problem, *grids, slack=0.5)


def grids(draw):
    grid = draw(st.lists(st.integers(1, 9), min_size=1, max_size=9))
    if sum(grid) % 2 == 0:
        grid[draw(st.integers(0, len(grid) - 1))] += 1
    return tuple(grid)


@st.composite
def problems(draw):
    shape = draw(
        st.tuples(
            st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 70)
        )
    )
    rows, cols = grids(draw), grids(draw)
    if draw(st.booleans()):
        rows, cols = (1,) * sum(rows), (1,) * sum(cols)
    problem = random_problem(shape, len(rows), len(cols), draw(st.integers(0, 99)))
    return problem, rows, cols


@pytest.mark.long
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(problems())
def test_random_problems(problem):
    operands, rows, cols = problem
    assert_as_good_as_direct(*operands, rows, cols, slack=1)


def test_kernel_far_larger_than_the_map():
    x, weight, bias, grad = random_problem((2, 3, 5, 4), 15, 15, seed=2)
    assert_as_good_as_direct(x, weight, bias, grad, GRID_101, GRID_101, slack=0.5)


def test_rounding_does_not_build_up_down_a_tall_map(instruction_set, method):
    x, weight, bias, grad = random_problem((1, 1, 1500, 9), 13, 13, seed=3, offset=2.0)
    out = convolve(method, x, weight, bias, GRID_51, GRID_51)
    exact, *_ = reference_results(
        *(t.double() for t in (x, weight, bias, grad)), GRID_51, GRID_51
    )
    error = (out - exact).abs().amax((0, 1, 3))
    assert error[-300:].mean() < 2 * error[:300].mean()


def test_every_instruction_set_and_method_agrees(monkeypatch):
    problem = random_problem((2, 3, 40, 50), 13, 13, seed=4)
    found = []
    for name in INSTRUCTION_SETS:
        monkeypatch.setenv(library.ENVIRONMENT_VARIABLE, name)
        for method in METHODS:
            parts = results(method, *problem, GRID_51, GRID_51)
            found.append(torch.cat([part.flatten() for part in parts]))
    for result in found[1:]:
        torch.testing.assert_close(result, found[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('fourier', FOURIER)
@pytest.mark.parametrize('wanted', ['x', 'weight'])
@pytest.mark.parametrize('shape', [(2, 3, 20, 30), (1, 2, 70, 65)])
def test_one_fourier_gradient_alone_has_the_same_bits(
    instruction_set, fourier, wanted, shape
):
    x, weight, _, grad = random_problem(shape, 13, 13, seed=12)
    both = gradients(fourier, x, grad, weight, GRID_51, GRID_51)
    alone = kernels.fourier_gradients(
        x if wanted == 'weight' else None,
        grad,
        weight if wanted == 'x' else None,
        GRID_51,
        GRID_51,
        lengths(fourier, x, GRID_51, GRID_51),
    )
    assert torch.equal(alone[wanted == 'weight'], both[wanted == 'weight'])
    assert alone[wanted == 'x'] is None


@pytest.mark.parametrize('down_along', [(7, 8), (14, 14), (10, 16), (22, 22), (20, 8)])
def test_transforms_of_lengths_that_cannot_serve_are_refused(
    instruction_set, down_along
):
    x, weight, _, grad = random_problem((1, 1, 8, 8), 13, 13, seed=13)
    grids = GRID_51, GRID_51
    with pytest.raises(ValueError, match='take Problem.transform_lengths'):
        kernels.fourier_convolve(x, weight, None, *grids, down_along)
    with pytest.raises(ValueError, match='take Problem.transform_lengths'):
        kernels.fourier_gradients(x, grad, weight, *grids, down_along)


@pytest.mark.parametrize('kernel', [(5, 5), (13, 5), (1, 3)])
@pytest.mark.parametrize('shape', [(2, 46, 9, 11), (1, 16, 30, 7), (3, 5, 6, 1)])
def test_sums_over_channels_have_the_same_bits_in_both_layouts(
    instruction_set, shape, kernel
):
    x, weight, bias, grad = random_problem(shape, *kernel, seed=14)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        maps = [t.contiguous(memory_format=layout) for t in (x, grad)]
        out = kernels.convolve_pixels(maps[0], weight, bias)
        assert out.is_contiguous(memory_format=layout)
        found.append((out, kernels.weight_grad_pixels(*maps, kernel)))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    'shape',
    [(2, 46, 33, 40), (1, 3, 5, 7), (2, 130, 9, 1), (2, 20, 1, 9), (3, 18, 1, 1)],
)
def test_layouts_come_and_go(instruction_set, dtype, shape):
    channels = shape[1]
    more = torch.randn(shape[0], channels + 9, *shape[2:]).to(dtype)
    more = more.contiguous(memory_format=torch.channels_last)
    transposed = more.transpose(2, 3)
    for x in (more, more[:, :channels], more[:, 3 : 3 + channels], transposed):
        planes = kernels.in_format(x, torch.contiguous_format)
        pixels = kernels.in_format(x.contiguous(), torch.channels_last)
        assert torch.equal(planes, x)
        assert torch.equal(pixels, x)
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        for there in (planes, pixels):
            for back in (torch.contiguous_format, torch.channels_last):
                assert torch.equal(kernels.in_format(there, back), x)


@pytest.mark.parametrize(
    'view',
    [
        lambda x: x[:, 1:4],
        lambda x: x[::2],
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x[..., ::2],
        lambda x: x[:, :1].expand(-1, 3, -1, -1),
        lambda x: x.flip(0),
    ],
)
def test_any_layout_gives_the_same_bits(method, view):
    x = view(torch.randn(3, 6, 20, 30, generator=torch.Generator().manual_seed(5)))
    weight = torch.linspace(-1, 1, x.shape[1] * 169).view(-1, 13, 13)
    dense = x.contiguous().clone()
    found = results(method, x, weight, None, x, GRID_51, GRID_51)
    expected = results(method, dense, weight, None, dense, GRID_51, GRID_51)
    for result, wanted in zip(found, expected, strict=True):
        assert result.is_contiguous()
        assert torch.equal(result, wanted)


@pytest.mark.parametrize('shape', [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8)])
def test_empty_tensors(method, shape):
    x = torch.randn(shape)
    weight = torch.randn(shape[1], 13, 13)
    out, grad_x, grad_weight = results(method, x, weight, None, x, GRID_51, GRID_51)
    assert out.shape == grad_x.shape == shape
    assert torch.equal(grad_weight, torch.zeros(shape[1], 13, 13))


def test_large_batch():
    x, weight, bias, grad = random_problem((300, 2, 6, 6), 5, 5, seed=6)
    # Torch fuses multiplications and additions, the portable one does not.
    assert_as_good_as_direct(x, weight, bias, grad, (1,) * 5, (1,) * 5, slack=0.3)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(instruction_set, method, dtype):
    problem = [t.to(dtype) for t in random_problem((1, 2, 40, 33), 13, 13, seed=7)]
    narrow = results(method, *problem, GRID_51, GRID_51)
    wide = results(method, *(t.float() for t in problem), GRID_51, GRID_51)
    # Rounded once, to nearest even, as torch rounds; weight gradients not at all.
    for result, expected in zip(narrow, wide, strict=True):
        assert torch.equal(result, expected.to(result.dtype))
    assert [result.dtype for result in narrow] == [dtype, dtype, torch.float32]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_every_half_number_passes_unchanged(instruction_set, dtype):
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 1, 256, 256)
    out = kernels.convolve(x, torch.ones(1, 1, 1), None)
    # Adding the bias 0 turns -0 into 0 and keeps a NaN one.
    torch.testing.assert_close(out, x, rtol=0, atol=0, equal_nan=True)


def test_rounding_to_half_precision(instruction_set):
    exponents = torch.arange(-30, 18).float().view(1, 1, -1, 1)
    steps = torch.linspace(1, 2, 97).view(1, 1, 1, -1)
    wide = torch.cat([2**exponents * steps, -(2**exponents) * steps], 2)
    # x = 1 times a weight in float32 leaves the rounding to the output alone.
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.ones(1, wide.numel(), 1, 1, dtype=dtype)
        out = kernels.convolve(x, wide.reshape(-1, 1, 1), None)
        assert torch.equal(out.flatten(), wide.flatten().to(dtype))


def test_threads_and_runs_agree(instruction_set, method):
    problem = random_problem((2, 5, 50, 300), 13, 13, seed=8)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            found.append(results(method, *problem, GRID_51, GRID_51))
    finally:
        torch.set_num_threads(threads)
    for again in found[1:]:
        assert all(map(torch.equal, again, found[0]))


def test_own_threads_agree_with_borrowed_ones(monkeypatch, method):
    problem = random_problem((2, 5, 50, 60), 13, 13, seed=9)
    borrowed = results(method, *problem, GRID_51, GRID_51)
    monkeypatch.setattr(library, 'borrowed_threads', lambda: None)
    own = results(method, *problem, GRID_51, GRID_51)
    assert all(map(torch.equal, own, borrowed))


def _convolve_in_child(queue, problem, threads):
    torch.set_num_threads(threads)
    x, weight, bias, _ = problem
    queue.put(convolve('column_fft', x, weight, bias, GRID_51, GRID_51).numpy())


@pytest.mark.parametrize('threads', [1, 2])
def test_forked_workers_are_unharmed(threads):
    problem = random_problem((2, 4, 40, 40), 13, 13, seed=10)
    x, weight, bias, _ = problem
    # The parent's threads are up before the fork, which the child does not inherit.
    expected = convolve('column_fft', x, weight, bias, GRID_51, GRID_51)
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    child = context.Process(target=_convolve_in_child, args=(queue, problem, threads))
    child.start()
    try:
        assert (queue.get(timeout=30) == expected.numpy()).all()
    finally:
        child.join(10)
        child.kill()
    assert torch.equal(
        convolve('column_fft', x, weight, bias, GRID_51, GRID_51), expected
    )


def test_offsets_beyond_32_bits(method):
    # 4.3e9 elements between the two images: only the touched pages take memory.
    stride = 2**32 + 12345
    storage = torch.empty(stride + 64, dtype=torch.uint8)
    storage = torch.empty(0, dtype=torch.float32).set_(
        torch.UntypedStorage(4 * (stride + 64)), 0, (stride + 64,), (1,)
    )
    x = storage.as_strided((2, 1, 8, 8), (stride, 64, 8, 1))
    x.copy_(torch.arange(128.0).view(2, 1, 8, 8))
    weight = torch.ones(1, 3, 3)
    found = results(method, x, weight, None, x, (1,) * 3, (1,) * 3)
    near = x.clone()
    expected = results(method, near, weight, None, near, (1,) * 3, (1,) * 3)
    assert all(map(torch.equal, found, expected))


def flags_of_memory(address):
    """What the system has noted of the memory at an address."""
    inside = False
    for line in Path('/proc/self/smaps').read_text().splitlines():
        field, _, rest = line.partition(' ')
        if '-' in field and not field.endswith(':'):
            first, last = (int(end, 16) for end in field.split('-'))
            inside = first <= address < last
        elif inside and field == 'VmFlags:':
            return rest.split()
    pytest.skip('this system does not tell the flags of memory')


@pytest.mark.skipif(
    not Path('/sys/kernel/mm/transparent_hugepage').exists(),
    reason='this system has no transparent huge pages',
)
def test_large_outputs_ask_for_huge_pages():
    x = torch.ones(1, 1, 1024, 1056)
    out = kernels.convolve(x, torch.ones(1, 1, 1), None)
    assert torch.equal(out, x)
    assert 'hg' in flags_of_memory(out.data_ptr() + out.nbytes // 2)
