"""The public operators: definitions, gradients, torch integration, errors."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from pelk_mm import ops
from pelk_mm.ops import reference, selection
from pelk_mm.ops.backends.cpu import library as cpu

GRID = (3, 2, 1, 1, 1, 2, 3)  # K = 13
ISA_CHOICES = [*cpu.instruction_sets(), 'none']


@pytest.fixture(params=ISA_CHOICES)
def version(request, monkeypatch):
    monkeypatch.setenv(cpu.ENVIRONMENT_VARIABLE, request.param)
    return request.param


def operands(shape, rows, cols, dtype=torch.float32, requires_grad=True):
    sizes = (shape, (shape[1], rows, cols), (shape[1],))
    return [
        torch.randn(size, dtype=dtype, requires_grad=requires_grad) for size in sizes
    ]


def peripheral(x, weight, bias):
    return ops.peripheral_conv2d(x, weight, GRID, bias)


def peripheral_reference(x, weight, bias):
    return reference.peripheral_conv2d(x, weight, GRID, bias)


OPERATORS = [
    pytest.param(peripheral, peripheral_reference, (7, 7), id='peripheral'),
    pytest.param(
        ops.depthwise_conv2d, reference.depthwise_conv2d, (9, 5), id='depthwise'
    ),
]


@pytest.mark.parametrize(('operator', 'definition', 'kernel'), OPERATORS)
@pytest.mark.parametrize('shape', [(2, 3, 20, 17), (1, 2, 4, 30), (2, 2, 1, 1)])
def test_values_and_gradients(version, operator, definition, kernel, shape):
    torch.manual_seed(0)
    leaves = operands(shape, *kernel)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    out, expected = operator(*leaves), definition(*exact)
    upstream = torch.randn(shape)
    grads = torch.autograd.grad(out, leaves, upstream)
    expected_grads = torch.autograd.grad(expected, exact, upstream.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    for grad, leaf, wanted in zip(grads, leaves, expected_grads, strict=True):
        assert grad.dtype == leaf.dtype
        torch.testing.assert_close(grad.double(), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(('operator', 'definition', 'kernel'), OPERATORS)
def test_gradcheck_in_float64(operator, definition, kernel):
    torch.manual_seed(1)
    leaves = operands((2, 1, 6, 5), *kernel, dtype=torch.float64)
    assert torch.autograd.gradcheck(operator, leaves)
    # The fast mode projects the second derivatives at random.
    assert torch.autograd.gradgradcheck(operator, leaves, fast_mode=True)


@pytest.mark.parametrize(('operator', 'definition', 'kernel'), OPERATORS)
def test_second_derivatives_in_float32(operator, definition, kernel):
    torch.manual_seed(2)
    leaves = operands((2, 2, 12, 9), *kernel)

    def penalty(function, arguments):
        out = function(*arguments).square().sum()
        grads = torch.autograd.grad(out, arguments, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), arguments)

    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for grad, wanted in zip(
        penalty(operator, leaves), penalty(definition, exact), strict=True
    ):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(grad.double(), wanted, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize('backend', selection.BACKENDS)
@pytest.mark.parametrize('kernel', [(5, 5), (21, 3), (3, 31)])
def test_backends_agree(backend, kernel):
    if backend in selection.COMPILED and not cpu.instruction_sets():
        pytest.skip('the kernels are not built')
    torch.manual_seed(3)
    leaves = operands((2, 3, 11, 13), *kernel)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    out = ops.depthwise_conv2d(*leaves, backend=backend)
    expected = reference.depthwise_conv2d(*exact)
    assert out.is_contiguous()
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    grads = torch.autograd.grad(out.sum(), leaves)
    for grad, wanted in zip(
        grads, torch.autograd.grad(expected.sum(), exact), strict=True
    ):
        torch.testing.assert_close(grad.double(), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('backend', selection.BACKENDS)
@pytest.mark.parametrize('grid', [GRID, (4, 1, 1, 1, 1, 2, 5), (9, 8, 4, 2, 4, 8, 10)])
def test_peripheral_backends_agree(backend, grid):
    if backend in selection.COMPILED and not cpu.instruction_sets():
        pytest.skip('the kernels are not built')
    torch.manual_seed(8)
    leaves = operands((2, 3, 11, 13), 7, 7)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    x, weight, bias = leaves
    out = ops.peripheral_conv2d(x, weight, grid, bias, backend=backend)
    expected = reference.peripheral_conv2d(exact[0], exact[1], grid, exact[2])
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, leaves, upstream)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    for grad, exact_grad in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('backend', [*selection.COMPILED, 'channels_last'])
@pytest.mark.parametrize('frozen', [0, 1, 2])
def test_frozen_operands(monkeypatch, backend, frozen):
    """Gradients that are not wanted change nothing about the others."""
    if backend in selection.COMPILED and not cpu.instruction_sets():
        pytest.skip('the kernels are not built')
    monkeypatch.setenv(selection.ENVIRONMENT_VARIABLE, backend)
    torch.manual_seed(9)
    leaves = operands((2, 3, 12, 10), 7, 7)
    wanted = torch.autograd.grad(peripheral(*leaves).square().sum(), leaves)
    leaves[frozen].requires_grad_(False)
    rest = [leaf for leaf in leaves if leaf.requires_grad]
    found = torch.autograd.grad(peripheral(*leaves).square().sum(), rest)
    wanted = [grad for i, grad in enumerate(wanted) if i != frozen]
    assert all(map(torch.equal, found, wanted))


def test_input_layouts(version):
    torch.manual_seed(4)
    x, weight, bias = operands((2, 4, 10, 12), 7, 7, requires_grad=False)
    expected = peripheral(x, weight, bias)
    strided = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(peripheral(strided, weight, bias), expected)
    out = peripheral(x[:, :2], weight[:2], bias[:2])
    torch.testing.assert_close(out, expected[:, :2])


@pytest.mark.parametrize('backend', [None, *selection.BACKENDS])
@pytest.mark.parametrize(('operator', 'definition', 'kernel'), OPERATORS)
def test_output_and_gradient_have_the_layout_of_the_input(
    monkeypatch, backend, operator, definition, kernel
):
    if backend in selection.COMPILED and not cpu.instruction_sets():
        pytest.skip('the kernels are not built')
    monkeypatch.setenv(selection.ENVIRONMENT_VARIABLE, backend or '')
    torch.manual_seed(10)
    x, weight, bias = operands((2, 5, 9, 8), *kernel)
    pixels = x.detach().contiguous(memory_format=torch.channels_last)
    part = torch.randn(2, 7, 9, 8).contiguous(memory_format=torch.channels_last)
    part[:, :5] = pixels
    upstream = torch.randn(2, 5, 9, 8)
    expected = operator(x, weight, bias)
    (wanted,) = torch.autograd.grad(expected, x, upstream)
    assert expected.is_contiguous()
    for view in (pixels, part[:, :5]):
        leaf = view.detach().requires_grad_()
        out = operator(leaf, weight, bias)
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        grad = torch.autograd.grad(
            out, leaf, upstream.contiguous(memory_format=torch.channels_last)
        )[0]
        assert grad.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('operator', 'definition', 'kernel'), OPERATORS)
def test_operators_that_nobody_observes_have_the_same_bits(
    operator, definition, kernel
):
    """The way around torch's dispatcher leads to the same results."""
    torch.manual_seed(11)
    leaves = operands((2, 3, 9, 8), *kernel)
    out = operator(*leaves)
    grads = torch.autograd.grad(out.square().sum(), leaves)
    with torch.profiler.profile() as profile:
        shown = operator(*leaves)
        shown_grads = torch.autograd.grad(shown.square().sum(), leaves)
    names = {event.key for event in profile.key_averages()}
    assert any(name.startswith('pelk_mm::') for name in names)
    with torch.no_grad():
        assert torch.equal(operator(*leaves), out)
    assert torch.equal(shown, out)
    assert all(map(torch.equal, shown_grads, grads))


@pytest.mark.parametrize(('operator', 'definition', 'kernel'), OPERATORS)
def test_forward_mode_is_refused(operator, definition, kernel):
    x, weight, bias = operands((1, 2, 6, 5), *kernel, requires_grad=False)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match='jvp|Jacobian'):
            operator(dual, weight, bias)


@pytest.mark.parametrize('shape', [(0, 3, 8, 8), (2, 3, 0, 8)])
def test_empty_batches(version, shape):
    x, weight, bias = operands(shape, 7, 7)
    for out in (peripheral(x, weight, bias), ops.depthwise_conv2d(x, weight, bias)):
        assert out.shape == shape
        out.sum().backward()
    assert not weight.grad.any()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(('operator', 'definition', 'kernel'), OPERATORS)
def test_half_precision(version, operator, definition, kernel, dtype):
    torch.manual_seed(5)
    leaves = operands((1, 2, 14, 15), *kernel, dtype=dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    out, expected = operator(*leaves), definition(*exact)
    assert out.dtype == dtype
    # One rounding, of the output: half a unit in the last place.
    tolerance = 0.51 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=1e-4)
    for grad in torch.autograd.grad(out.sum(), leaves):
        assert grad.dtype == dtype


@pytest.mark.parametrize(('operator', 'definition', 'kernel'), OPERATORS)
def test_autocast(operator, definition, kernel):
    torch.manual_seed(6)
    leaves = operands((2, 2, 9, 9), *kernel)
    with torch.autocast('cpu', torch.bfloat16):
        out = operator(*leaves)
        double = operator(*(leaf.double() for leaf in leaves))
    assert out.dtype == torch.bfloat16
    assert double.dtype == torch.float64
    torch.testing.assert_close(out.double(), double, rtol=0.02, atol=0.1)
    out.float().square().sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)


@pytest.mark.parametrize('backend', selection.BACKENDS)
@pytest.mark.parametrize(('operator', 'definition', 'kernel'), OPERATORS)
def test_torch_compile_sees_one_node(
    monkeypatch, backend, operator, definition, kernel
):
    if backend in selection.COMPILED and not cpu.instruction_sets():
        pytest.skip('the kernels are not built')
    monkeypatch.setenv(selection.ENVIRONMENT_VARIABLE, backend)
    torch.manual_seed(7)
    torch.compiler.reset()
    leaves = operands((2, 2, 9, 9), *kernel)
    compiled = torch.compile(operator, fullgraph=True, backend='aot_eager')
    grads = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
    wanted = torch.autograd.grad(operator(*leaves).square().sum(), leaves)
    for grad, expected in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, expected)


def test_registration():
    x, weight, bias = operands((2, 2, 9, 8), 7, 7)
    checks = ('test_schema', 'test_autograd_registration', 'test_faketensor')
    library = torch.ops.pelk_mm
    for operator, arguments in (
        (library.depthwise_conv2d, (x, weight, None, bias, None)),
        (library.depthwise_conv2d_backward, (x, x, weight, None, True, None)),
        (library.depthwise_conv2d_backward, (None, x, weight, None, True, None)),
        (library.peripheral_conv2d, (x, weight, GRID, bias, None)),
        (library.peripheral_conv2d_backward, (x, x, weight, GRID, True, None)),
        (library.peripheral_conv2d_backward, (x, x, weight, GRID, False, None)),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=checks)


def test_meta_tensors():
    x, weight, bias = (t.to('meta') for t in operands((2, 3, 8, 8), 7, 7))
    assert peripheral(x, weight, bias).shape == x.shape
    assert ops.depthwise_conv2d(x, weight, bias).device.type == 'meta'


def test_flops_are_those_of_the_algorithm():
    x, weight, _ = operands((2, 3, 8, 9), 7, 7)
    pixels = x.numel()
    with FlopCounterMode(display=False) as counter:
        ops.peripheral_conv2d(x, weight, GRID).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * pixels * 7 * 7
    with FlopCounterMode(display=False) as counter:
        ops.depthwise_conv2d(x, weight).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * pixels * 7 * 7


def test_checkpointing():
    x, weight, bias = operands((2, 3, 8, 9), 7, 7)
    wanted = torch.autograd.grad(peripheral(x, weight, bias).square().sum(), weight)
    out = checkpoint(peripheral, x, weight, bias, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(out.square().sum(), weight)[0], wanted[0])


def test_frozen_weight_keeps_no_input():
    x, weight, bias = operands((2, 3, 8, 9), 7, 7)
    out = peripheral(x, weight.detach(), None)
    assert [t for t in out.grad_fn.saved_tensors if t is not None][0].shape == (3, 7, 7)
    assert torch.autograd.grad(out.sum(), x)[0].shape == x.shape


X = torch.zeros(2, 3, 8, 8)
W = torch.zeros(3, 7, 7)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((X[0], W, GRID), r'expected x of shape \(N, C, H, W\).*\(3, 8, 8\)'),
        ((X, W[:2], GRID), 'kernels for 2 channels and x has 3'),
        ((X, W, GRID, torch.zeros(2)), r'bias has shape \(2,\)'),
        ((X, W.double(), GRID), 'weight is torch.float64 and x is torch.float32'),
        ((X, W.to('meta'), GRID), 'weight is on meta and x on cpu'),
        ((X, W, GRID[:5]), 'sharing_grid has 5 cells'),
        ((X, W, (3, 2, 1, 0, 1, 2, 3)), 'no positive integer'),
        ((X, W, (3, 2, 1, 2, 1, 2, 3)), 'sums to 14; the kernel size must be odd'),
        ((X.int(), W.int(), GRID), 'pass floating-point numbers'),
    ],
)
def test_bad_peripheral_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.peripheral_conv2d(*arguments)


@pytest.mark.parametrize(
    ('arguments', 'backend', 'message'),
    [
        ((X, W[:, :6]), None, '6 x 7 have no centre; pad'),
        ((X, W), 'cudnn', "no convolution backend 'cudnn'; choose one of"),
        ((X, W[..., 0]), None, 'weight of shape'),
    ],
)
def test_bad_depthwise_input(arguments, backend, message):
    with pytest.raises(ValueError, match=message):
        ops.depthwise_conv2d(*arguments, backend=backend)
