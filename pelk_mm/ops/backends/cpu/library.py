"""The compiled CPU kernels: loading the library and calling it.

The library (`csrc/`) is built by `setup.py` with a plain C interface, so it is tied
to no version of torch. It works plane by plane, by direct sums (PeLK, section 4.1) or
by Fourier transforms; operation counts and memory are in `docs/performance.md`.
"""

import ctypes
import functools
import importlib.machinery
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layout import has_dense_planes, memory_format

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
#: Floats of a vector by instruction set.
LANES = {'avx512': 16, 'avx2': 8, 'portable': 4}
ENVIRONMENT_VARIABLE = 'PELK_MM_ISA'


class _Tensor(ctypes.Structure):
    _fields_ = [
        ('data', ctypes.c_void_p),
        ('batch_stride', ctypes.c_int64),
        ('row_stride', ctypes.c_int64),
    ]


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ('version', 'threads', 'type')),
        *((name, ctypes.c_int32) for name in ('row_cells', 'col_cells')),
        *((name, ctypes.c_int32) for name in ('down', 'along')),
        *((name, ctypes.c_void_p) for name in ('row_grid', 'col_grid')),
        *((name, ctypes.c_int64) for name in ('batch', 'channels', 'height', 'width')),
        ('parallel', ctypes.c_void_p),
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled library, or None with a warning where it was not built."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).parents[2] / f'_kernels{suffix}'
        if path.exists():
            library = ctypes.CDLL(str(path))
            library.pelk_version_name.restype = ctypes.c_char_p
            return library
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
    """The library's versions that this processor can run, best first.

    Returns:
        Index in the library of each version by name; empty without the library.
    """
    library = _library()
    found: dict[str, int] = {}
    index = 0
    while library and (name := library.pelk_version_name(index)):
        if library.pelk_version_supported(index):
            found[name.decode()] = index
        index += 1
    return found


def instruction_set() -> str | None:
    """Name the version in use: the best one or what `PELK_MM_ISA` asks for.

    Returns:
        'avx512', 'avx2' or 'portable'; None where the library is missing or
        `PELK_MM_ISA=none` turns it off.

    Raises:
        ValueError: `PELK_MM_ISA` names a version that cannot run here.
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


@functools.cache
def _borrowed_threads() -> int | None:
    """Address of the OpenMP entry point of the runtime that torch itself loaded.

    Its idle threads spin for a while after each of torch's operations; threads of
    our own would compete with them.
    """
    try:
        entry = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None
    return ctypes.cast(entry, ctypes.c_void_p).value


_PROCESS = os.getpid()
#: Bytes from which on a tensor is worth huge pages of 2 MiB.
_HUGE = 4 * 2**20


def _empty_like(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Memory of the shape and dtype of a tensor, of huge pages where it is large.

    A large tensor is new memory, of which the kernel of the system clears every page
    that is touched: by pages of 4 KiB that takes as long as the convolution. NumPy
    asks for huge pages in the same way, from the same size on.
    """
    out = torch.empty_like(x, memory_format=layout)
    if out.nbytes >= _HUGE:
        _library().pelk_use_huge_pages(_address(out), ctypes.c_size_t(out.nbytes))
    return out


def in_format(x: Tensor, wanted: torch.memory_format) -> Tensor:
    """The same values in a layout.

    Args:
        x: Feature map of shape (N, C, H, W), on the CPU, of a dtype in `DTYPES`.
        wanted: contiguous_format for dense planes at any distance from each other, or
            channels_last for pixels at any one distance from the next.

    Returns:
        `x` itself where it is so, else a copy.
    """
    if wanted == torch.contiguous_format and x.is_contiguous():
        return x
    found = memory_format(x)
    has_matrices = found == torch.channels_last or has_dense_planes(x)
    if found == wanted and has_matrices:
        return x
    if not (has_matrices and x.numel()):
        return x.contiguous(memory_format=wanted)
    channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
    out = _empty_like(x, wanted)
    size = (pixels, channels) if found == torch.channels_last else (channels, pixels)
    job, _grids = _job(x, (), ())
    _check(
        _library().pelk_transpose(
            ctypes.byref(job),
            ctypes.byref(_describe(x, found)),
            ctypes.byref(_describe(out, wanted)),
            *map(ctypes.c_int64, size),
        )
    )
    return out


def _describe(
    x: Tensor, layout: torch.memory_format = torch.contiguous_format
) -> _Tensor:
    row_stride = x.stride(3) if layout == torch.channels_last else x.stride(1)
    return _Tensor(x.data_ptr(), x.stride(0), row_stride)


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@functools.lru_cache(maxsize=1024)
def _array(grid: tuple[int, ...]) -> tuple[ctypes.Array, int]:
    """A grid as the library reads it, and its address."""
    array = (ctypes.c_int32 * len(grid))(*grid)
    return array, ctypes.addressof(array)


def _job(
    x: Tensor,
    row_grid: Sequence[int],
    col_grid: Sequence[int],
    lengths: tuple[int, int] | None = None,
) -> tuple[_Job, tuple]:
    """Describe a call, and what its pointers need kept alive."""
    grids = _array(tuple(row_grid)), _array(tuple(col_grid))
    # OpenMP's threads do not survive a fork; the library's own do not outlive a call.
    borrowed = _borrowed_threads() if os.getpid() == _PROCESS else None
    job = _Job(
        instruction_sets()[instruction_set()],
        torch.get_num_threads(),
        DTYPES[x.dtype],
        len(row_grid),
        len(col_grid),
        *(lengths or (0, 0)),
        grids[0][1],
        grids[1][1],
        *x.shape,
        borrowed,
    )
    return job, grids


def _check(status: int) -> None:
    if status == 1:
        raise MemoryError('the CPU kernels found no memory for their rows')
    if status:
        raise ValueError(
            'the lengths of the Fourier transforms must be even, of factors 2, 3 and '
            "5, and at least the map's size and half the kernel's; take fft.lengths()"
        )


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_grid: Sequence[int],
    col_grid: Sequence[int],
    lengths: tuple[int, int] | None = None,
) -> Tensor:
    """Convolve every channel with its kernel, given by a parameter a cell.

    Args:
        x: Input of shape (N, C, H, W), on the CPU, of a dtype in `DTYPES`.
        weight: Parameters of shape (C, rows, cols).
        bias: Optional bias of shape (C,).
        row_grid: Taps of each cell down the kernel, odd in sum.
        col_grid: Taps of each cell along the kernel, odd in sum.
        lengths: Of the Fourier transforms down and along (`fft.lengths`); None sums
            directly, and 0 along sums along.

    Returns:
        Contiguous output of shape (N, C, H, W), accumulated in float32.

    Raises:
        ValueError: There are no such transforms, or they are too short.
    """
    out = _empty_like(x, torch.contiguous_format)
    if not out.numel():
        return out
    x = in_format(x, torch.contiguous_format)
    weight = weight.float().contiguous()
    bias = None if bias is None else bias.float().contiguous()
    job, _grids = _job(x, row_grid, col_grid, lengths)
    _check(
        _library().pelk_convolve(
            ctypes.byref(job),
            ctypes.byref(_describe(x)),
            _address(weight),
            _address(bias),
            _address(out),
        )
    )
    return out


def weight_grad(
    x: Tensor, grad: Tensor, row_grid: Sequence[int], col_grid: Sequence[int]
) -> Tensor:
    """Gradient of `convolve` to its parameters, by direct sums.

    Args:
        x: Input of shape (N, C, H, W), on the CPU, of a dtype in `DTYPES`.
        grad: Gradient to the output, of the same shape and dtype.
        row_grid: Taps of each cell down the kernel, odd in sum.
        col_grid: Taps of each cell along the kernel, odd in sum.

    Returns:
        Gradient of shape (C, rows, cols), float32.
    """
    shape = (x.shape[1], len(row_grid), len(col_grid))
    if not x.numel():
        return torch.zeros(shape, dtype=torch.float32, device=x.device)
    out = torch.empty(shape, dtype=torch.float32, device=x.device)
    x = in_format(x, torch.contiguous_format)
    grad = in_format(grad, torch.contiguous_format)
    job, _grids = _job(x, row_grid, col_grid)
    _check(
        _library().pelk_weight_grad(
            ctypes.byref(job),
            ctypes.byref(_describe(x)),
            ctypes.byref(_describe(grad)),
            _address(out),
        )
    )
    return out


def _pixel_job(
    x: Tensor, kernel: tuple[int, int], layout: torch.memory_format
) -> tuple[_Job, ctypes.c_int32]:
    """Describe a call, and whether its maps are planes."""
    job, _ = _job(x, (), ())
    job.row_cells, job.col_cells = kernel
    return job, ctypes.c_int32(layout == torch.contiguous_format)


def _missing(channels: int) -> int:
    """Channels that a vector has more."""
    if channels >= max(LANES.values()):
        return 0
    return max(0, LANES[instruction_set()] - channels)


def _fill_vector(x: Tensor) -> Tensor:
    """Add channels of zeros until there is a vector of them."""
    missing = _missing(x.shape[1])
    return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x


def convolve_pixels(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve every channel with a dense kernel, by sums over vectors of channels.

    Args:
        x: Input of shape (N, C, H, W), on the CPU, float32. The sums run where the
            channels of a pixel lie together; other layouts are brought into that one
            a vector of channels at a time.
        weight: Kernels of shape (C, kh, kw), odd.
        bias: Optional bias of shape (C,).

    Returns:
        Output of shape (N, C, H, W), in the layout of the input.
    """
    layout = memory_format(x)
    if not x.numel():
        return _empty_like(x, layout)
    channels, *kernel = weight.shape
    if _missing(channels):
        bias = None if bias is None else _fill_vector(bias[None, :, None, None]).ravel()
        out = convolve_pixels(_fill_vector(x), _fill_vector(weight[None])[0], bias)
        return out[:, :channels].contiguous(memory_format=layout)
    x = in_format(x, layout)
    out = _empty_like(x, layout)
    weight = weight.float().contiguous()
    bias = None if bias is None else bias.float().contiguous()
    job, planes = _pixel_job(x, kernel, layout)
    _check(
        _library().pelk_convolve_pixels(
            ctypes.byref(job),
            planes,
            ctypes.byref(_describe(x, layout)),
            _address(weight),
            _address(bias),
            ctypes.byref(_describe(out, layout)),
        )
    )
    return out


def weight_grad_pixels(x: Tensor, grad: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Gradient of `convolve_pixels` to its kernels.

    Args:
        x: Input of shape (N, C, H, W), on the CPU, float32.
        grad: Gradient to the output, of the same shape and dtype.
        kernel: Size (kh, kw) of the kernels, odd.

    Returns:
        Gradient of shape (C, kh, kw), float32.
    """
    channels, layout = x.shape[1], memory_format(grad)
    x, grad = (in_format(_fill_vector(maps), layout) for maps in (x, grad))
    out = torch.zeros(*kernel, x.shape[1], dtype=torch.float32, device=x.device)
    if x.numel():
        job, planes = _pixel_job(x, kernel, layout)
        _check(
            _library().pelk_weight_grad_pixels(
                ctypes.byref(job),
                planes,
                ctypes.byref(_describe(x, layout)),
                ctypes.byref(_describe(grad, layout)),
                _address(out),
            )
        )
    return out.permute(2, 0, 1)[:channels]


def fourier_gradients(
    x: Tensor | None,
    grad: Tensor,
    weight: Tensor | None,
    row_grid: Sequence[int],
    col_grid: Sequence[int],
    lengths: tuple[int, int],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `convolve` by Fourier transforms, which the two share.

    Args:
        x: Input of shape (N, C, H, W), on the CPU, of a dtype in `DTYPES`; None where
            the gradient to the parameters is not wanted.
        grad: Gradient to the output, of the same shape and dtype.
        weight: Parameters of shape (C, rows, cols); None where the gradient to the
            input is not wanted.
        row_grid: Taps of each cell down the kernel, odd in sum.
        col_grid: Taps of each cell along the kernel, odd in sum.
        lengths: Of the transforms down and along (`fft.lengths`); 0 along sums along.

    Returns:
        Gradient to the input, contiguous and like `grad`, and gradient of shape
        (C, rows, cols) to the parameters, float32; None where not wanted.
    """
    grad_x = grad_weight = None
    if weight is not None:
        grad_x = _empty_like(grad, torch.contiguous_format)
        weight = weight.float().contiguous()
    if x is not None:
        grad_weight = torch.zeros(
            grad.shape[1],
            len(row_grid),
            len(col_grid),
            dtype=torch.float32,
            device=grad.device,
        )
        x = in_format(x, torch.contiguous_format)
    if grad.numel():
        grad = in_format(grad, torch.contiguous_format)
        job, _grids = _job(grad, row_grid, col_grid, lengths)
        _check(
            _library().pelk_fourier_gradients(
                ctypes.byref(job),
                ctypes.byref(_describe(grad if x is None else x)),
                ctypes.byref(_describe(grad)),
                _address(weight),
                _address(grad_x),
                _address(grad_weight),
            )
        )
    return grad_x, grad_weight


def convolve_planes(x, weight, bias):
    return convolve(x, weight, bias, (1,) * weight.shape[1], (1,) * weight.shape[2])


def weight_grad_planes(x, grad, kernel):
    return weight_grad(x, grad, (1,) * kernel[0], (1,) * kernel[1])
