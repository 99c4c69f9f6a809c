"""The public operators: gradients, torch integration, errors, explanations."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from pelk_mm import ops
from pelk_mm.ops import choose, reference
from pelk_mm.ops.backends import cpu
from pelk_mm.ops.backends.cpu import library

GRID = (3, 2, 1, 1, 1, 2, 3)  # K = 13
ISA_CHOICES = [*cpu.instruction_sets(), 'none']


@pytest.fixture(params=ISA_CHOICES)
def version(request, monkeypatch):
    monkeypatch.setenv(library.ENVIRONMENT_VARIABLE, request.param)
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


@pytest.mark.parametrize('backend', choose.BACKENDS)
@pytest.mark.parametrize(('operator', 'definition', 'kernel'), OPERATORS)
def test_torch_compile_sees_one_node(
    monkeypatch, backend, operator, definition, kernel
):
    if backend not in ops.available_backends():
        pytest.skip('the kernels are not built')
    monkeypatch.setenv(choose.ENVIRONMENT_VARIABLE, backend)
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
        (
            (X, W[:2], GRID),
            'kernels for 2 channels and x has 3; pass one kernel per channel',
        ),
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


def test_available_backends(monkeypatch):
    everywhere = ['channels_last', 'nchw', 'torch_fft']
    assert ops.available_backends('cuda') == everywhere
    assert ops.available_backends(dtype=torch.float64) == everywhere
    compiled = [backend.name for backend in cpu.BACKENDS]
    if cpu.instruction_sets():
        assert ops.available_backends() == compiled + everywhere
    monkeypatch.setenv(library.ENVIRONMENT_VARIABLE, 'none')
    assert ops.available_backends() == everywhere


@pytest.mark.skipif(not cpu.instruction_sets(), reason='the kernels are not built')
def test_explain_names_times_and_reasons(capsys):
    x, weight, _ = operands((2, 3, 64, 64), 7, 7, requires_grad=False)
    text = ops.explain(x, weight, GRID)
    assert capsys.readouterr().out == text + '\n'
    lines = text.splitlines()
    what = '13 x 13 shared by 7 x 7 on 2 x 3 x 64 x 64, float32, contiguous, cpu'
    assert lines[0] == what
    told = {line.split()[0]: line for line in lines[1 : 1 + len(choose.BACKENDS)]}
    assert list(told) == list(choose.BACKENDS)
    assert all(' ms' in told[name] for name in ops.available_backends())
    assert 'stands in' in told['nchw']
    assert lines[-2].startswith('forward: ')
    assert lines[-1].startswith('backward: ')
    exact = ops.explain(x.double(), weight.double(), GRID)
    reason = 'no: it computes float32, bfloat16, float16, and x is float64'
    assert exact.count(reason) == len(cpu.BACKENDS) + 1  # and triton's
    assert 'forward: channels_last, not measured' in exact


def test_explain_insists_as_the_operators_do(monkeypatch):
    x, weight, _ = operands((2, 3, 16, 16), 5, 5, requires_grad=False)
    assert 'forward: torch_fft, ' in ops.explain(x, weight, backend='torch_fft')
    monkeypatch.setenv(choose.ENVIRONMENT_VARIABLE, 'nchw')
    assert 'forward: nchw, ' in ops.explain(x, weight)
    with pytest.raises(ValueError, match='6 x 7 have no centre'):
        ops.explain(X, W[:, :6])


@pytest.mark.parametrize('insist', ['argument', 'variable'])
def test_a_backend_that_cannot_run_is_refused_with_the_reason(monkeypatch, insist):
    """Also where another would silently have been taken before."""
    x, weight, _ = operands((1, 3, 8, 8), 7, 7, torch.float64, requires_grad=False)
    backend, prefix = 'fft', ''
    if insist == 'variable':
        monkeypatch.setenv(choose.ENVIRONMENT_VARIABLE, backend)
        backend, prefix = None, 'PELK_MM_CONV=fft: '
    message = (
        f"{prefix}the backend 'fft' cannot compute this convolution, because it "
        r'computes .*float16, and x is float64; choose one of '
        r"\['channels_last', 'nchw', 'torch_fft'\]"
    )
    for call in (
        lambda: ops.depthwise_conv2d(x, weight, backend=backend),
        lambda: ops.peripheral_conv2d(x, weight, GRID, backend=backend),
        lambda: ops.explain(x, weight, backend=backend),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_export_to_onnx_is_a_case_of_why_not(monkeypatch):
    """Only torch's own operators are recorded; what cannot be is refused."""
    monkeypatch.setattr(torch.onnx, 'is_in_onnx_export', lambda: True)
    x, weight, bias = operands((2, 3, 8, 9), 7, 7)
    out = peripheral(x, weight, bias)
    torch.testing.assert_close(out, peripheral_reference(x, weight, bias))
    assert 'PelkMm' not in str(out.grad_fn)
    assert out.grad_fn.next_functions
    with pytest.raises(ValueError, match='because exporters to ONNX cannot write'):
        ops.depthwise_conv2d(x, weight, backend='torch_fft')
