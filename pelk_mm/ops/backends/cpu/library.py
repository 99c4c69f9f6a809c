"""The compiled library: finding, checking and describing calls to it.

The library (`csrc/`) is built by `setup.py` with a plain C interface, so it is tied
to no version of torch. The structures and status codes here mirror `csrc/api.h`.
"""

import ctypes
import functools
import importlib.machinery
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from ..._torch_compat import openmp_entry

#: Type codes of the library.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
#: Floats per vector by instruction set.
LANES = {'avx512': 16, 'avx2': 8, 'portable': 4}
ENVIRONMENT_VARIABLE = 'PELK_MM_ISA'
#: Version of the C interface: the number in `csrc/api.h`.
ABI = 2


class TensorView(ctypes.Structure):
    """A tensor (N, C, H, W) as a batch of matrices, strides in elements.

    A row of a matrix is a channel (contiguous planes) or a pixel (channels_last).
    """

    _fields_ = [
        ('data', ctypes.c_void_p),
        ('batch_stride', ctypes.c_int64),
        ('row_stride', ctypes.c_int64),
    ]


class Job(ctypes.Structure):
    """What every call says about its problem and how to run it."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ('instruction_set', 'threads', 'type')),
        *((name, ctypes.c_int32) for name in ('kernel_rows', 'kernel_cols')),
        *((name, ctypes.c_int32) for name in ('vertical_length', 'horizontal_length')),
        *((name, ctypes.c_void_p) for name in ('row_grid', 'col_grid')),
        *((name, ctypes.c_int64) for name in ('batch', 'channels', 'height', 'width')),
        ('parallel', ctypes.c_void_p),
    ]


_JOB, _VIEW = ctypes.POINTER(Job), ctypes.POINTER(TensorView)
_DATA, _INT64 = ctypes.c_void_p, ctypes.c_int64
#: Types of the arguments of each function, as `csrc/api.h` declares them.
_ARGUMENTS = {
    'pelk_use_huge_pages': (_DATA, ctypes.c_size_t),
    'pelk_transpose': (_JOB, _VIEW, _VIEW, _INT64, _INT64),
    'pelk_convolve': (_JOB, _VIEW, _DATA, _DATA, _DATA),
    'pelk_weight_grad': (_JOB, _VIEW, _VIEW, _DATA),
    'pelk_fourier_convolve': (_JOB, _VIEW, _DATA, _DATA, _DATA),
    'pelk_fourier_gradients': (_JOB, _VIEW, _VIEW, _DATA, _DATA, _DATA),
    'pelk_convolve_pixels': (_JOB, ctypes.c_int32, _VIEW, _DATA, _DATA, _VIEW),
    'pelk_weight_grad_pixels': (_JOB, ctypes.c_int32, _VIEW, _VIEW, _DATA),
}


def open_library(path: Path) -> ctypes.CDLL:
    """Open a compiled library and check that it belongs to this package.

    Args:
        path: File of the library.

    Returns:
        The library.

    Raises:
        RuntimeError: It was built from another version of the sources, so that calls
            would misread their arguments.
    """
    library = ctypes.CDLL(str(path))
    try:
        found = f'{library.pelk_abi()} ({library.pelk_job_bytes()} bytes per job)'
    except AttributeError:
        found = 'none'
    needed = f'{ABI} ({ctypes.sizeof(Job)} bytes per job)'
    if found != needed:
        raise RuntimeError(
            f'the compiled CPU kernels in {path} are of another version than this '
            f'package: their interface is {found}, needed is {needed}. Rebuild them: '
            '`pip install --no-build-isolation -e .` in a checkout; elsewhere, '
            'uninstall pelk_mm and install it again'
        )
    library.pelk_instruction_set.restype = ctypes.c_char_p
    for name, types in _ARGUMENTS.items():
        getattr(library, name).argtypes = types
    return library


@functools.cache
def load() -> ctypes.CDLL | None:
    """Open the library of this installation.

    Returns:
        The library, or None with a warning where it was not built.

    Raises:
        RuntimeError: The library is of another version than this package.
    """
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f'_kernels{suffix}')
        if path.exists():
            return open_library(path)
    warnings.warn(
        'pelk_mm was installed without its compiled CPU kernels, so large kernels '
        'run through torch, several times slower. Install a C++17 compiler (GCC or '
        'Clang) and reinstall pelk_mm to have them.',
        RuntimeWarning,
        stacklevel=2,
    )
    return None


@functools.cache
def instruction_sets() -> dict[str, int]:
    """List the instruction sets that the library has and this processor can run.

    Returns:
        Index in the library by name, best first; empty without the library.
    """
    library = load()
    found: dict[str, int] = {}
    index = 0
    while library and (name := library.pelk_instruction_set(index)):
        if library.pelk_instruction_set_supported(index):
            found[name.decode()] = index
        index += 1
    return found


def instruction_set() -> str | None:
    """Name the instruction set in use: the best or what `PELK_MM_ISA` asks for.

    Returns:
        'avx512', 'avx2' or 'portable'; None where the library is missing or
        `PELK_MM_ISA=none` turns it off.

    Raises:
        ValueError: `PELK_MM_ISA` names an instruction set that cannot run here.
    """
    available = instruction_sets()
    asked = os.environ.get(ENVIRONMENT_VARIABLE)
    if not asked:
        return next(iter(available), None)
    if asked == 'none':
        return None
    if asked not in available:
        raise ValueError(
            f'{ENVIRONMENT_VARIABLE}={asked} cannot run here; unset it or choose one '
            f'of {[*available, "none"]}'
        )
    return asked


def require_instruction_set() -> str:
    """Name the instruction set in use where a call needs one.

    Raises:
        RuntimeError: The library is missing or turned off.
        ValueError: `PELK_MM_ISA` names an instruction set that cannot run here.
    """
    name = instruction_set()
    if name is None:
        raise RuntimeError(
            'the compiled CPU kernels are missing or turned off by '
            f'{ENVIRONMENT_VARIABLE}=none; choose another backend'
        )
    return name


_PROCESS = os.getpid()


def borrowed_threads() -> int | None:
    """Find the threads that torch itself uses.

    Its idle threads spin for a while after each of torch's operations; threads of
    our own would compete with them.

    Returns:
        Address of the function that runs work on them; None for threads of the
        library's own. OpenMP's threads do not survive a fork, the library's own do not
        outlive a call.
    """
    return openmp_entry() if os.getpid() == _PROCESS else None


def call(name: str, *arguments: Any) -> None:
    """Call a function of the library.

    Args:
        name: Name of the function.
        arguments: What it takes; structures are handed over by reference, and memory
            by its address or None.

    Raises:
        RuntimeError: The kernels were not built, or are of another version.
        MemoryError: There was no memory for intermediate results.
        ValueError: Transforms of these lengths do not exist or are too short.
    """
    library = load()
    if library is None:
        raise RuntimeError(
            'the compiled CPU kernels are missing; install a C++17 compiler (GCC or '
            'Clang) and reinstall pelk_mm, or choose another backend'
        )
    status = getattr(library, name)(*arguments)
    if status == 1:
        raise MemoryError('the CPU kernels found no memory for intermediate results')
    if status:
        raise ValueError(
            'the lengths of the Fourier transforms must be even, of factors 2, 3 and '
            "5, and at least the map's size and half the kernel's; take "
            'Problem.transform_lengths'
        )
