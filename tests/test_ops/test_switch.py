"""The switch that leaves the package's own operators out."""

import importlib.util
import threading

import pytest
import torch
from torch import nn

from pelk_mm import ops
from pelk_mm.ops import choose, reference, switch
from pelk_mm.ops.backends import cpu, triton

GRID = (3, 2, 1, 1, 1, 2, 3)  # K = 13

KINDS = {
    'dense': (
        ops.depthwise_conv2d,
        reference.depthwise_conv2d,
        (9, 5),
    ),
    'shared': (
        lambda x, w, b, **kw: ops.peripheral_conv2d(x, w, GRID, b, **kw),
        lambda x, w, b: reference.peripheral_conv2d(x, w, GRID, b),
        (7, 7),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


class Layer(nn.Module):
    """A convolution of maps that are smaller than its kernel after a while."""

    def __init__(self, kind, backend=None):
        super().__init__()
        self.operator, _, size = kind
        self.weight = nn.Parameter(torch.randn(4, *size) * 0.1)
        self.bias = nn.Parameter(torch.randn(4))
        self.backend = backend

    def forward(self, x):
        return self.operator(x, self.weight, self.bias, backend=self.backend)


def operands(size, shape=(2, 4, 10, 7)):
    sizes = (shape, (shape[1], *size), shape[1:2])
    return [torch.randn(size, requires_grad=True) for size in sizes]


def namespaces(graph):
    return {
        node.target.namespace
        for node in graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    }


# ---------------------------------------------------------------------- the switch


def test_off_unless_asked_and_restored_whatever_happens():
    assert not ops.is_plain()
    with ops.plain():
        assert ops.is_plain()
        with ops.plain(False):
            assert not ops.is_plain()
        assert ops.is_plain()
        with pytest.raises(KeyError), ops.plain(False):
            raise KeyError
        assert ops.is_plain()
    assert not ops.is_plain()


def test_each_thread_has_its_own():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(ops.is_plain()))
    with ops.plain():
        thread.start()
        thread.join()
    assert seen == [False]


@pytest.mark.parametrize('value', ['', '0', '1', 'yes'])
def test_environment(monkeypatch, value):
    """Read where the module is executed, for every thread."""
    monkeypatch.setenv(switch.ENVIRONMENT_VARIABLE, value)
    spec = importlib.util.spec_from_file_location('fresh', switch.__file__)
    fresh = importlib.util.module_from_spec(spec)
    if value == 'yes':
        with pytest.raises(ValueError, match='PELK_MM_PLAIN=yes is neither 0 nor 1'):
            spec.loader.exec_module(fresh)
        return
    spec.loader.exec_module(fresh)
    seen = [fresh.is_plain()]
    thread = threading.Thread(target=lambda: seen.append(fresh.is_plain()))
    thread.start()
    thread.join()
    assert seen == [value == '1'] * 2
    with fresh.plain(False):
        assert not fresh.is_plain()


# ----------------------------------------------------------------------- in eager


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('shape', [(2, 4, 10, 7), (1, 3, 1, 2), (0, 2, 5, 5)])
def test_values_and_gradients(kind, shape, layout):
    operator, definition, size = kind
    leaves = operands(size, shape)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    with ops.plain():
        out = operator(leaves[0].contiguous(memory_format=layout), *leaves[1:])
    expected = definition(*exact)
    upstream = torch.randn(shape)
    # Gradients follow what the forward pass recorded, outside too.
    grads = torch.autograd.grad(out, leaves, upstream)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    for ours, theirs in zip((out, *grads), (expected, *wanted), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_no_operator_of_ours_runs(kind):
    operator, _, size = kind
    leaves = operands(size)

    def names():
        with torch.profiler.profile() as profile:
            operator(*leaves).sum().backward()
        return {event.key for event in profile.key_averages()}

    assert any('pelk' in name for name in names())
    with ops.plain():
        assert not any('pelk' in name.lower() for name in names())


def test_autocast(kind):
    operator, definition, size = kind
    leaves = operands(size)
    with ops.plain(), torch.autocast('cpu', torch.bfloat16):
        out = operator(*leaves)
        exact = operator(*(leaf.double() for leaf in leaves))
    assert (out.dtype, exact.dtype) == (torch.bfloat16, torch.float64)
    torch.testing.assert_close(out.double(), exact, rtol=0.02, atol=0.1)


@pytest.mark.parametrize('backend', ['nchw', 'channels_last', 'torch_fft'])
def test_backends_of_torch_are_honoured(kind, backend):
    operator, definition, size = kind
    leaves = operands(size)
    with ops.plain():
        program = torch.export.export(
            Layer(kind, backend), (leaves[0].detach(),), strict=False
        )
        out = operator(*leaves, backend=backend)
    transforms = any('fft' in str(node.target) for node in program.graph.nodes)
    assert transforms == (backend == 'torch_fft')
    assert namespaces(program.graph) == {'aten'}
    grads = torch.autograd.grad(out.square().sum(), leaves)
    wanted = torch.autograd.grad(definition(*leaves).square().sum(), leaves)
    for ours, theirs in zip(grads, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('insist', ['argument', 'variable'])
def test_backends_of_ours_are_refused(monkeypatch, kind, insist):
    operator, _, size = kind
    backend = 'fft'
    if insist == 'variable':
        monkeypatch.setenv(choose.ENVIRONMENT_VARIABLE, backend)
        backend = None
    message = (
        "'fft' cannot compute this convolution, because torch's own operators alone "
        r"are wanted, by .*; choose one of \['channels_last', 'nchw', 'torch_fft'\]"
    )
    with ops.plain(), pytest.raises(ValueError, match=message):
        operator(*operands(size), backend=backend)


def test_what_is_said_of_backends(capsys):
    x, weight, _ = operands((7, 7))
    with ops.plain():
        assert ops.available_backends() == ['channels_last', 'nchw', 'torch_fft']
        text = ops.explain(x.to(memory_format=torch.channels_last), weight, GRID)
    assert 'float32, channels_last, cpu' in text
    refused = text.count("no: torch's own operators alone are wanted")
    assert refused == len(cpu.BACKENDS) + len(triton.BACKENDS)
    assert 'forward: channels_last, not measured' in text


# ------------------------------------------------------------------------- tracing


def test_strict_export(kind):
    """With sizes that stay dynamic, above and below that of the kernel."""
    layer = Layer(kind)
    sizes = {
        0: torch.export.Dim('batch', max=64),
        2: torch.export.Dim('height', min=2, max=512),
        3: torch.export.Dim('width', min=2, max=512),
    }
    x = torch.randn(2, 4, 10, 7)
    with ops.plain():
        program = torch.export.export(layer, (x,), dynamic_shapes=(sizes,), strict=True)
    assert namespaces(program.graph) == {'aten'}
    for shape in ((2, 4, 10, 7), (1, 4, 2, 3), (3, 4, 31, 40)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-4)


def test_symbolic_sizes_have_no_fourier_transforms(kind):
    sizes = {2: torch.export.Dim('height', min=2), 3: torch.export.Dim('width', min=2)}
    layer, x = Layer(kind, 'torch_fft'), torch.randn(2, 4, 10, 7)
    message = 'its transforms have fixed lengths and x has symbolic sizes'
    with ops.plain(), pytest.raises(ValueError, match=message):
        torch.export.export(layer, (x,), dynamic_shapes=(sizes,), strict=False)


def test_without_it_the_operators_are_recorded(kind):
    x = torch.randn(2, 4, 10, 7)
    program = torch.export.export(Layer(kind), (x,))
    assert namespaces(program.graph) == {'pelk_mm'}


def test_torch_compile_notices_the_switch(kind):
    graphs = []

    def record(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph

    torch.compiler.reset()
    layer, x = Layer(kind), torch.randn(2, 4, 10, 7)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend=record)
    for plain, count in ((False, 1), (True, 2), (False, 2), (True, 2)):
        with ops.plain(plain):
            torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
        assert len(graphs) == count
    ours = [any('pelk_mm' in name for name in names) for names in graphs]
    assert ours == [True, False]


@pytest.mark.usefixtures('open_sizes')
def test_the_switch_within_compiled_code():
    torch.compiler.reset()
    layer, x = Layer(KINDS['shared']), torch.randn(2, 4, 10, 7)

    @torch.compile(fullgraph=True, backend='aot_eager')
    def inside(x):
        with ops.plain():
            return layer(x)

    inside(x).sum().backward()
    got = layer.weight.grad.clone()
    layer.zero_grad()
    layer(x).sum().backward()
    torch.testing.assert_close(got, layer.weight.grad, rtol=1e-3, atol=1e-3)
    assert not ops.is_plain()
