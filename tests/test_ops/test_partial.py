"""Convolution of the first channels alone, the others passing unchanged."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pelk_mm import ops
from pelk_mm.ops import choose, operators
from pelk_mm.ops.backends.base import Backend

GRID = (3, 2, 1, 1, 1, 2, 3)  # K = 13
#: Channels that are convolved, of all.
FIRST, ALL = 3, 8


def dense(x, weight, bias=None, **settings):
    return ops.depthwise_conv2d(x, weight, bias, **settings)


def shared(x, weight, bias=None, **settings):
    return ops.peripheral_conv2d(x, weight, GRID, bias, **settings)


def in_three_passes(operator, x, weight, bias=None, **settings):
    """What it equals."""
    first, rest = x[:, :FIRST], x[:, FIRST:]
    return torch.cat((operator(first, weight, bias, **settings), rest), dim=1)


def operands(shape=(2, ALL, 10, 9), dtype=torch.float32, layout=torch.channels_last):
    x = torch.randn(shape, dtype=dtype).contiguous(memory_format=layout)
    weight, bias = (
        torch.randn(FIRST, 7, 7, dtype=dtype),
        torch.randn(FIRST, dtype=dtype),
    )
    return [leaf.requires_grad_() for leaf in (x, weight, bias)]


@pytest.fixture(params=[dense, shared], ids=lambda function: function.__name__)
def operator(request):
    return request.param


@pytest.mark.parametrize('backend', choose.BACKENDS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_equals_three_passes_bit_by_bit(operator, backend, dtype, layout):
    if backend not in ops.available_backends(dtype=dtype):
        pytest.skip('the backend cannot run')
    leaves = operands(dtype=dtype, layout=layout)
    out = operator(*leaves, partial=True, backend=backend)
    expected = in_three_passes(operator, *leaves, backend=backend)
    assert torch.equal(out, expected)
    assert out.is_contiguous(memory_format=layout)
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, leaves, upstream)
    wanted = torch.autograd.grad(expected, leaves, upstream)
    assert all(map(torch.equal, grads, wanted))
    assert grads[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    'shape', [(0, ALL, 5, 5), (1, ALL, 1, 1), (2, ALL, 1, 6), (1, FIRST, 5, 5)]
)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_shapes(operator, shape, layout):
    leaves = operands(shape, layout=layout)
    out = operator(*leaves, partial=True)
    expected = in_three_passes(operator, *leaves)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn(shape)
    torch.testing.assert_close(
        torch.autograd.grad(out, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
    )


def test_a_slice_of_a_larger_map(operator):
    x, weight, bias = operands((2, ALL + 3, 6, 7))
    out = operator(x[:, 2 : 2 + ALL], weight, bias, partial=True)
    assert torch.equal(out, in_three_passes(operator, x[:, 2 : 2 + ALL], weight, bias))


@pytest.mark.parametrize('frozen', [0, 1])
def test_gradients_that_nobody_wants(operator, frozen):
    leaves = operands()
    leaves[frozen].requires_grad_(False)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    grads = torch.autograd.grad(operator(*leaves, partial=True).square().sum(), wanted)
    expected = torch.autograd.grad(
        in_three_passes(operator, *leaves).square().sum(), wanted
    )
    torch.testing.assert_close(grads, expected)


@pytest.mark.long
def test_gradcheck(operator):
    leaves = operands((1, FIRST + 2, 4, 3), torch.float64)

    def mix(*arguments):
        return operator(*arguments, partial=True)

    assert torch.autograd.gradcheck(mix, leaves)
    assert torch.autograd.gradgradcheck(mix, leaves, fast_mode=True)


@pytest.mark.parametrize('frozen', [None, 0, 1])
def test_second_derivatives(operator, frozen):
    """Those of a frozen input or weight take other ways through the formula."""

    def penalty(function, *settings):
        leaves = [leaf.detach() for leaf in values]
        for i, leaf in enumerate(leaves):
            leaf.requires_grad_(i != frozen)
        needed = [leaf for leaf in leaves if leaf.requires_grad]
        out = function(*leaves).pow(3).sum()
        grads = torch.autograd.grad(out, needed, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in grads), needed)

    values = operands((1, ALL, 5, 4), torch.float64)
    torch.testing.assert_close(
        penalty(lambda *leaves: operator(*leaves, partial=True)),
        penalty(lambda *leaves: in_three_passes(operator, *leaves)),
    )


def test_registration():
    x, weight, bias = operands()
    arguments = {
        torch.ops.pelk_mm.peripheral_conv2d: (x, weight, GRID, bias, None),
        torch.ops.pelk_mm.depthwise_conv2d_backward: (x, x, weight, None, True, None),
        torch.ops.pelk_mm.peripheral_conv2d_backward: (x, x, weight, GRID, False, None),
        torch.ops.pelk_mm.depthwise_conv2d: (x, weight, None, None, None),
    }
    checks = ('test_schema', 'test_autograd_registration', 'test_faketensor')
    for operator, given in arguments.items():
        torch.library.opcheck(operator.default, given, test_utils=checks)


def test_torch_compile(operator):
    torch.compiler.reset()
    leaves = operands()

    def mix(*arguments):
        return operator(*arguments, partial=True)

    compiled = torch.compile(mix, fullgraph=True, backend='aot_eager')
    out, expected = compiled(*leaves), mix(*leaves)
    assert torch.equal(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
    )


def test_autocast_lowers_what_is_convolved_alone(operator):
    x, weight, bias = operands()
    with torch.autocast('cpu', torch.bfloat16):
        out = operator(x, weight, bias, partial=True)
        expected = in_three_passes(operator, x, weight, bias)
        lowered = operator(x.bfloat16(), weight, bias, partial=True)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)
    assert torch.equal(out[:, FIRST:], x[:, FIRST:])
    assert lowered.dtype == torch.bfloat16
    assert torch.equal(lowered[:, :FIRST].float(), out[:, :FIRST])


def test_plain_is_torch_alone(operator):
    leaves = operands()
    with torch.no_grad(), ops.plain():
        program = torch.export.export(
            Module(operator), tuple(leaf.detach() for leaf in leaves), strict=True
        )
        out = operator(*leaves, partial=True)
    torch.testing.assert_close(
        out, operator(*leaves, partial=True), rtol=1e-4, atol=1e-4
    )
    targets = {str(n.target) for n in program.graph.nodes if n.op == 'call_function'}
    assert not any('pelk' in target for target in targets)


class Module(torch.nn.Module):
    """The operator, as an exporter wants it."""

    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def forward(self, x, weight, bias):
        return self.operator(x, weight, bias, partial=True)


def test_flops_are_those_of_the_channels_convolved(operator):
    x, weight, bias = operands()
    with FlopCounterMode(display=False) as counter:
        operator(x, weight, bias, partial=True).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 10 * 9) * weight.numel()


def test_the_rest_alone_is_copied_where_that_is_cheaper(operator):
    """Off the CPU; meta tensors stand for them, which compute nothing."""
    x, weight, _ = (leaf.detach() for leaf in operands())
    with torch.device('meta'):
        out = operators._copy_rest(x.to('meta'), weight)
    assert out.shape == x.shape
    assert out.stride() == x.stride()


def test_what_a_backend_gives_by_default_is_copied(monkeypatch):
    """One that says nothing of places writes into them all the same."""

    class Half(Backend):
        name = 'half'

        def why_not(self, problem):
            return None

        def forward(self, problem, x, weight, bias):
            return x / 2

        def dense_gradient(self, problem, x, grad):
            return torch.ones(x.shape[1], *problem.kernel)

    monkeypatch.setitem(choose.BACKENDS, 'half', Half())
    leaves = operands()
    out = dense(*leaves, partial=True, backend='half')
    assert torch.equal(out[:, :FIRST], leaves[0][:, :FIRST] / 2)
    assert torch.equal(out[:, FIRST:], leaves[0][:, FIRST:])
    to_x, to_weight = torch.autograd.grad(out.sum(), leaves[:2])
    assert torch.equal(to_x[:, :FIRST], torch.full_like(to_x[:, :FIRST], 0.5))
    assert torch.equal(to_x[:, FIRST:], torch.ones_like(to_x[:, FIRST:]))
    assert torch.equal(to_weight, torch.ones_like(to_weight))


@pytest.mark.parametrize(
    ('partial', 'channels', 'message'),
    [
        (True, ALL + 1, f'kernels for {ALL + 1} channels and x has only {ALL}'),
        (False, FIRST, 'one kernel per channel, or partial=True where the other'),
    ],
)
def test_bad_input(partial, channels, message):
    with pytest.raises(ValueError, match=message):
        dense(torch.zeros(1, ALL, 5, 5), torch.zeros(channels, 3, 3), partial=partial)
