"""The private functions of torch that are used, each with a safe answer without it.

Most tell whether a call may go around torch's dispatcher, which takes tens of
microseconds in Python. With a torch that lacks one of them no call does.
"""

import ctypes
import functools
from typing import Any

import torch


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
#: Its `_current_level` is -1 outside of forward-mode differentiation.
_forward_mode = _find('autograd.forward_ad')


def is_watched() -> bool:
    """Whether something counts, traces, transforms or profiles torch's operators."""
    if None in (
        _in_dispatch_mode,
        _function_modes,
        _transform_level,
        _profiler_enabled,
    ):
        return True
    return bool(
        _in_dispatch_mode()
        or _function_modes()
        or _transform_level() is not None
        or _profiler_enabled()
    )


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is on."""
    return getattr(_forward_mode, '_current_level', 0) >= 0


@functools.cache
def openmp_entry() -> int | None:
    """Address of the OpenMP entry point of the runtime that torch itself loaded.

    Returns:
        That of ``GOMP_parallel``; None where torch has no such runtime.
    """
    try:
        entry = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None
    return ctypes.cast(entry, ctypes.c_void_p).value
