"""Whether the kernels can run here, and why not.

triton is imported when a problem first asks for it: `import pelk_mm.ops` must not wait
for it, and it may be missing.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

#: Devices that triton serves and nobody has run these kernels on.
_NOT_TRIED = {
    'xpu': 'Intel GPUs',
    'hpu': 'Intel Gaudi',
    'mtia': 'MTIA',
    'npu': 'Ascend NPUs',
}
#: Earlier GPUs have neither bfloat16 operands nor asynchronous copies.
LEAST_CAPABILITY = 8

#: What went wrong, by type of device: the kernels are not tried again.
_failures: dict[str, str] = {}


class LaunchFailedError(RuntimeError):
    """A kernel did not compile or could not be started; `why_not` tells it from then.

    Nothing was computed: another backend can take the call over.
    """


@functools.cache
def load() -> tuple[ModuleType, ModuleType] | str:
    """Modules of the kernels, or why they cannot be had."""
    try:
        return (
            importlib.import_module('.pack', __package__),
            importlib.import_module('.products', __package__),
        )
    except ImportError as error:
        return (
            f'it needs the package triton, which could not be imported ({error}); '
            'pip install triton'
        )


def modules() -> tuple[ModuleType, ModuleType]:
    """The same where `why_not` had nothing against it."""
    found = load()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


@functools.cache
def interpreted() -> bool:
    """Whether triton's interpreter runs the kernels, on tensors of the CPU."""
    found = load()
    return not isinstance(found, str) and bool(found[1].INTERPRETED.value)


def failure(device: str) -> str | None:
    """What went wrong on a type of device, if anything."""
    return _failures.get(device)


def failures() -> tuple[tuple[str, str], ...]:
    """All that went wrong, to be compared."""
    return tuple(_failures.items())


def why_not(device: str) -> str | None:
    """Say why kernels cannot run on a type of device, as a backend does.

    Nobody has run them on a GPU of any maker; for NVIDIA's they were compiled, counted
    and interpreted.
    """
    if device in _NOT_TRIED:
        return (
            f'its kernels were neither compiled for nor run on {_NOT_TRIED[device]}, '
            'which triton may serve; they were compiled for NVIDIA GPUs alone'
        )
    if device not in ('cpu', 'cuda'):
        return f'it runs on NVIDIA GPUs and x is on {device}'
    if device == 'cuda' and torch.version.hip is not None:
        return (
            'its kernels were neither compiled for nor run on AMD GPUs (ROCm), which '
            'triton serves; they were compiled for NVIDIA GPUs alone'
        )
    found = load()
    if isinstance(found, str):
        return found
    if device == 'cpu' and not interpreted():
        return (
            "it runs on NVIDIA GPUs and x is on cpu, where triton's interpreter alone "
            'runs it: set TRITON_INTERPRET=1 before the first import, for tests'
        )
    if device == 'cuda':
        if interpreted():
            return 'TRITON_INTERPRET is set, which runs it on the CPU alone; unset it'
        if not torch.cuda.is_available():
            return 'torch finds no NVIDIA GPU'
        if capability() < LEAST_CAPABILITY:
            return (
                f'it needs GPUs of compute capability {LEAST_CAPABILITY}.0 (Ampere) at '
                f'least, and one here has {capability()}.x'
            )
    return failure(device)


@functools.cache
def capability() -> int:
    """First number of the least compute capability of the GPUs here.

    The latest that the kernels were made for where there is no GPU.
    """
    if not torch.cuda.is_available():
        return 9
    numbers = range(torch.cuda.device_count())
    found = (torch.cuda.get_device_capability(number)[0] for number in numbers)
    return min(found, default=9)


def launch(
    kernel: Any, programs: Sequence[int], device: str, *arguments: Any, **constants: Any
) -> None:
    """Start a kernel, compiling it where it is new.

    Raises:
        LaunchFailedError: It could not be compiled or started. The reason is kept.
    """
    run: Callable[..., Any] = kernel[tuple(programs)]
    try:
        run(*arguments, **constants)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or ['no message']
        reason = f'a kernel failed to start ({type(error).__name__}: {lines[-1]})'
        _failures[device] = reason
        raise LaunchFailedError(reason) from error
