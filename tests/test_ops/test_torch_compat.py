"""Private functions of torch, and how calls fare without them."""

import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pelk_mm import ops
from pelk_mm.ops import _torch_compat

FOUND = [
    name for name in vars(_torch_compat) if name.startswith('_') and name != '_find'
]
FOUND = [name for name in FOUND if not name.startswith('__')]


def call():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 3, 3)
    return ops.depthwise_conv2d(x, weight)


@pytest.mark.parametrize('name', FOUND)
def test_this_torch_has_all_of_them(name):
    assert len(FOUND) == 5
    assert getattr(_torch_compat, name) is not None
    assert hasattr(torch.autograd.forward_ad, '_current_level')


@pytest.mark.skipif(sys.platform != 'linux', reason='torch has another OpenMP there')
def test_threads_can_be_borrowed(monkeypatch):
    assert _torch_compat.openmp_entry()
    monkeypatch.setattr(torch._C, '__file__', '/no/such/library.so')
    assert _torch_compat.openmp_entry.__wrapped__() is None


def test_nothing_is_watched_by_default():
    assert not _torch_compat.is_watched()
    assert not _torch_compat.in_forward_mode()


@pytest.mark.parametrize('name', [name for name in FOUND if name != '_forward_mode'])
def test_without_one_of_them_calls_go_through_the_dispatcher(monkeypatch, name):
    expected = call()
    monkeypatch.setattr(_torch_compat, name, None)
    assert _torch_compat.is_watched()
    torch.manual_seed(0)
    assert torch.equal(call(), expected)


def test_without_its_level_forward_mode_is_taken_to_be_on(monkeypatch):
    monkeypatch.setattr(_torch_compat, '_forward_mode', None)
    assert _torch_compat.in_forward_mode()
    call()


@pytest.mark.parametrize('base', [TorchFunctionMode, TorchDispatchMode])
@pytest.mark.parametrize('operator', ['depthwise_conv2d', 'peripheral_conv2d'])
def test_modes_see_the_operators(base, operator):
    """Also the gradients, which a dispatch mode sees."""
    seen = []

    class Watch(base):
        def _note(self, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            return function(*arguments, **(keywords or {}))

        __torch_function__ = __torch_dispatch__ = _note

    x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 3, 3, requires_grad=True)
    arguments = (x, weight) if operator.startswith('depth') else (x, weight, (1, 3, 1))
    with Watch():
        getattr(ops, operator)(*arguments).sum().backward()
    assert any(f'pelk_mm.{operator}' in name for name in seen)
    if base is TorchDispatchMode:
        assert any(f'pelk_mm.{operator}_backward' in name for name in seen)
