"""The private functions of torch that are used, each with a safe answer without it.

Most tell whether a call may go around torch's dispatcher, which takes tens of
microseconds in Python. With a torch that lacks one of them no call does.
"""

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor


def _find(path: str) -> Any:
    """What torch has under a dotted name, or None."""
    found: Any = torch
    for name in path.split('.'):
        found = getattr(found, name, None)
    return found


#: Whether a TorchDispatchMode is on, as FLOP counters and tracers are.
_in_dispatch_mode = _find('utils._python_dispatch.is_in_torch_dispatch_mode')
#: How many TorchFunctionModes are on.
_function_modes = _find('_C._len_torch_function_stack')
#: Depth of torch.func transforms, or None.
_transform_level = _find('_C._functorch.maybe_current_level')
_profiler_enabled = _find('autograd._profiler_enabled')
#: Hooks that all modules call before and after their forward pass, by number.
_global_pre_hooks = _find('nn.modules.module._global_forward_pre_hooks')
_global_hooks = _find('nn.modules.module._global_forward_hooks')
#: Its `_current_level` is -1 outside of forward-mode differentiation.
_forward_mode = _find('autograd.forward_ad')


def under_autocast(kind: str) -> bool:
    """Whether autocast is on for a type of device; meta has none."""
    # torch cannot be asked for devices without it, nor PyTorch 2.6 whether it has it
    # while it compiles.
    known = kind in ('cpu', 'cuda', 'xpu') or torch.amp.is_autocast_available(kind)
    return known and torch.is_autocast_enabled(kind)


def is_traced() -> bool:
    """Whether something counts, traces or transforms torch's operators."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if None in (_in_dispatch_mode, _function_modes, _transform_level):
        return True
    return bool(
        _in_dispatch_mode() or _function_modes() or _transform_level() is not None
    )


def is_watched() -> bool:
    """Whether something counts, traces, transforms or profiles torch's operators."""
    return is_traced() or _profiler_enabled is None or bool(_profiler_enabled())


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is on."""
    return getattr(_forward_mode, '_current_level', 0) >= 0


def has_global_hooks() -> bool:
    """Whether hooks of all modules may keep what a module takes or returns."""
    if _global_pre_hooks is None or _global_hooks is None:
        return True
    return bool(_global_pre_hooks or _global_hooks)


#: oneDNN's matrix product with a bias, and the layout of its own for weights.
_onednn_linear = _find('ops.mkldnn._linear_pointwise')
_onednn_pack = _find('ops.mkldnn._reorder_linear_weight')
_onednn_bfloat16 = _find('ops.mkldnn._is_mkldnn_bf16_supported')


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether `onednn_linear` can compute in a data type on this processor."""
    if (
        _onednn_linear is None
        or not torch.backends.mkldnn.is_available()
        or not torch.backends.mkldnn.enabled
    ):
        return False
    if dtype == torch.bfloat16:
        return _onednn_bfloat16 is not None and bool(_onednn_bfloat16())
    return dtype == torch.float32


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` by oneDNN, without gradients; weights packed or not."""
    return _onednn_linear(x, weight, bias, 'none', [], '')


def onednn_pack(weight: Tensor, rows: int) -> Tensor | None:
    """Weights of shape (C_out, C_in) in oneDNN's own layout, or None without one.

    Args:
        weight: The weights, of a data type that `has_onednn`.
        rows: Rows of the inputs that are expected.
    """
    return None if _onednn_pack is None else _onednn_pack(weight, rows)


@functools.cache
def openmp_entry() -> int | None:
    """Address of the OpenMP entry point of the runtime that torch itself runs on.

    Another runtime may stand before the one that torch brings along: one preloaded
    (``LD_PRELOAD=libiomp5.so``) or loaded for the whole process before torch. Threads
    of two runtimes would compete for the processors.

    Returns:
        That of ``GOMP_parallel``; None where torch has no such runtime.
    """
    try:
        brought = ctypes.CDLL(torch._C.__file__)
        entries = [_address_of_entry(brought)]
    except (AttributeError, OSError):
        return None
    try:
        # What the whole process sees, in the order that the dynamic linker follows.
        shared = ctypes.CDLL(None)
        entries.append(_address_of_entry(shared))
    except (AttributeError, OSError):
        return entries[0]
    # Also different where another library brought a runtime after torch had its own.
    if entries[0] != entries[1] and _sets_threads_of_torch(shared):
        return entries[1]
    return entries[0]


def _address_of_entry(library: ctypes.CDLL) -> int | None:
    return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value


def _sets_threads_of_torch(library: ctypes.CDLL) -> bool:
    """Whether a library's ``omp_set_num_threads`` is the one that torch listens to."""
    threads = torch.get_num_threads()
    other = threads - 1 or 2
    # Of this thread alone, and only of the runtime that is asked.
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(other)
    try:
        return torch.get_num_threads() == other
    finally:
        library.omp_set_num_threads(before)
