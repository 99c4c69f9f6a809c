"""`linear` against F.linear, whichever library computes it."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from pelk_mm import ops
from pelk_mm.ops import _torch_compat
from pelk_mm.ops import linear as module
from pelk_mm.ops.linear import linear, pack

#: Rows and widths, none of them a multiple of a vector in the first.
SHAPES = [((2, 5, 7, 13), 29), ((3, 16), 64), ((249,), 3)]

needs_onednn = pytest.mark.skipif(
    not _torch_compat.has_onednn(torch.float32), reason='torch has no oneDNN here'
)


@pytest.fixture
def calls(monkeypatch):
    """What goes to oneDNN's operator."""
    seen = []

    def record(x, weight, bias):
        seen.append(x.dtype)
        return _torch_compat.onednn_linear(x, weight, bias)

    monkeypatch.setattr(module, 'onednn_linear', record)
    return seen


def operands(shape, out, dtype=torch.float32, requires_grad=False):
    torch.manual_seed(0)
    shapes = shape, (out, shape[-1]), (out,)
    return [torch.randn(s).to(dtype).requires_grad_(requires_grad) for s in shapes]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('with_bias', [True, False])
@pytest.mark.parametrize(('shape', 'out'), SHAPES)
def test_values_and_gradients(library, shape, out, with_bias, dtype):
    leaves = operands(shape, out, dtype, requires_grad=True)[: 2 + with_bias]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, right = linear(*leaves), F.linear(*wide)
    assert found.dtype == dtype
    grad = torch.randn(right.shape, dtype=torch.float64)
    pairs = zip(
        (found, *torch.autograd.grad(found, leaves, grad.to(dtype))),
        (right, *torch.autograd.grad(right, wide, grad.to(dtype).double())),
        strict=True,
    )
    bound = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}[dtype]
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        error = (ours.double() - theirs).abs().max()
        assert error <= bound * theirs.abs().max()


@needs_onednn
def test_gradients_to_some(onednn, calls):
    x, weight, bias = operands((4, 6), 5)
    for needed in ((x,), (weight,), (bias,), (x, bias)):
        for leaf in (x, weight, bias):
            leaf.requires_grad_(any(leaf is other for other in needed))
        grads = torch.autograd.grad(linear(x, weight, bias).sum(), needed)
        right = torch.autograd.grad(F.linear(x, weight, bias).sum(), needed)
        torch.testing.assert_close(grads, right)
    assert len(calls) == 4 + 2  # forward each, and the gradient to x


@needs_onednn
def test_second_gradients(onednn):
    leaves = operands((3, 4), 5, requires_grad=True)

    def seconds(function):
        out = function(*leaves).square().sum()
        firsts = torch.autograd.grad(out, leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in firsts), leaves)

    torch.testing.assert_close(seconds(linear), seconds(F.linear))


@needs_onednn
def test_the_library_is_the_one_asked_for(monkeypatch, calls):
    leaves = operands((4, 6), 5)
    for name, number in (('torch', 0), ('onednn', 1)):
        monkeypatch.setenv('PELK_MM_LINEAR', name)
        linear(*leaves)
        assert len(calls) == number
    monkeypatch.setenv('PELK_MM_LINEAR', 'blas')
    with pytest.raises(ValueError, match='PELK_MM_LINEAR=blas is none of torch, onedn'):
        linear(*leaves)


@pytest.mark.parametrize(
    ('vendor', 'mkl', 'expected'),
    [
        ('AuthenticAMD', True, 'onednn'),
        ('AMD64 Family 25 Model 1 Stepping 1, AuthenticAMD', True, 'onednn'),
        ('GenuineIntel', True, 'torch'),
        ('AuthenticAMD', False, 'torch'),
        ('', True, 'torch'),
    ],
)
def test_rule(monkeypatch, vendor, mkl, expected):
    monkeypatch.delenv('PELK_MM_LINEAR', raising=False)
    monkeypatch.setattr(module, 'processor_vendor', lambda: vendor)
    monkeypatch.setattr(torch.backends.mkl, 'is_available', lambda: mkl)
    assert module.faster_library() == expected


def test_vendor_of_this_processor():
    assert isinstance(module.processor_vendor(), str)


@needs_onednn
def test_who_looks_on_sees_torchs_own(onednn, calls):
    leaves = operands((4, 6), 5)
    right = linear(*leaves)
    assert len(calls) == 1
    with ops.plain():
        linear(*leaves)
    with FlopCounterMode(display=False) as counter:
        linear(*leaves)
    assert counter.get_total_flops() == 2 * 4 * 6 * 5
    torch.func.vmap(linear, (0, None, None))(*leaves)
    traced = torch.jit.trace(linear, tuple(leaves), check_trace=False)
    torch.testing.assert_close(traced(*leaves), right)
    program = torch.export.export(Module(), tuple(leaves))
    assert 'mkldnn' not in str(program.graph)
    with torch.backends.mkldnn.flags(enabled=False):
        linear(*leaves)
    linear(*(leaf.to('meta') for leaf in leaves))
    linear(leaves[0][:0], *leaves[1:])
    with torch.autocast('cpu', torch.bfloat16):
        assert linear(*leaves).dtype == torch.bfloat16
    assert len(calls) == 1


class Module(torch.nn.Module):
    def forward(self, x, weight, bias):
        return linear(x, weight, bias)


@needs_onednn
@pytest.mark.parametrize('missing', ['_onednn_linear', '_onednn_pack'])
def test_a_torch_without_the_operators(onednn, monkeypatch, missing):
    leaves = operands((4, 6), 5)
    monkeypatch.setattr(_torch_compat, missing, None)
    assert pack(*leaves[1:]) is None
    torch.testing.assert_close(linear(*leaves), F.linear(*leaves))


def packed_dtypes():
    for dtype in (torch.float32, torch.bfloat16):
        lacks = not _torch_compat.has_onednn(dtype)
        reason = f'oneDNN does not multiply {dtype} on this processor'
        yield pytest.param(dtype, marks=pytest.mark.skipif(lacks, reason=reason))


@pytest.mark.parametrize('dtype', packed_dtypes())
@pytest.mark.parametrize('autocast', [False, True])
def test_packed(onednn, calls, dtype, autocast):
    x, weight, bias = operands((2, 3, 5, 24), 40, torch.float32 if autocast else dtype)
    with torch.autocast('cpu', dtype, enabled=autocast and dtype != torch.float32):
        packed = pack(weight, bias, dtype)
        found, again = (linear(x, weight, bias, packed) for _ in range(2))
        expected = F.linear(x, weight, bias)
    assert calls == [dtype] * 2
    assert found.dtype == expected.dtype
    assert torch.equal(found, again)
    error = (found - expected).abs().max() / expected.abs().max()
    assert error <= 4 * torch.finfo(dtype).eps
    # Rows that it was not packed for, and a bias less.
    rows = torch.randn(4097, 24).to(dtype)
    torch.testing.assert_close(
        linear(rows, weight, None, pack(weight, None, dtype)), F.linear(rows, weight)
    )


@needs_onednn
def test_packed_weights_that_do_not_fit_are_left_out(onednn):
    x, weight, bias = operands((4, 24), 40)
    for changed in (weight, bias):
        packed = pack(weight, bias)
        changed.mul_(2)
        found = linear(x, weight, bias, packed)
        torch.testing.assert_close(found, F.linear(x, weight, bias))
    packed = pack(weight, bias)
    other = weight * 3
    torch.testing.assert_close(linear(x, other, bias, packed), F.linear(x, other, bias))
    packed = pack(weight, bias)
    weight.requires_grad_()
    assert linear(x, weight, bias, packed).requires_grad
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert linear(x, weight, bias, packed).dtype == torch.bfloat16


@needs_onednn
def test_why_not_packed(onednn, monkeypatch):
    weight = torch.randn(4, 4)
    assert module.why_not_packed(weight, torch.float32) is None
    assert 'meta' in module.why_not_packed(weight.to('meta'), torch.float32)
    assert 'float64' in module.why_not_packed(weight, torch.float64)
    with torch.inference_mode():
        made = torch.randn(4, 4)
    assert 'inference_mode' in module.why_not_packed(made, torch.float32)
    torch.testing.assert_close(
        linear(made, made, None, pack(weight, None)), F.linear(made, made)
    )
    monkeypatch.setenv('PELK_MM_LINEAR', 'torch')
    assert 'F.linear' in module.why_not_packed(weight, torch.float32)


#: Prints a checksum of an output and its gradients.
SCRIPT = """
import hashlib, torch
from pelk_mm.ops.linear import linear
torch.manual_seed(0)
leaves = [torch.randn(s, requires_grad=True) for s in ((999, 124), (499, 124), (499,))]
out = linear(*leaves)
found = [out, *torch.autograd.grad(out.square().sum(), leaves)]
print(hashlib.sha256(b''.join(t.detach().numpy().tobytes() for t in found)).hexdigest())
"""


@pytest.mark.long
def test_processes_agree_on_every_bit(library):
    command = [sys.executable, '-c', SCRIPT]
    runs = [subprocess.run(command, capture_output=True, text=True) for _ in range(2)]
    assert all(run.returncode == 0 for run in runs), runs
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout.strip()) == 64
