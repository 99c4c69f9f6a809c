"""Calls of the compiled CPU kernels.

Every channel is convolved with a kernel of its own, by direct sums, by Fourier
transforms of planes or columns, or by sums over vectors of channels; operation counts
and memory are in `docs/performance.md`.

In all of them `x` is the input and `grad` the gradient to the output, of shape
(N, C, H, W), on the CPU and of a dtype in `DTYPES` (float32 for sums over vectors of
channels); kernels are of shape (C, kh, kw), kh and kw odd; `bias` is None or of shape
(C,). Sums are kept in float32, and so are gradients to parameters.
"""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...layout import has_dense_planes, memory_format
from . import library
from .library import DTYPES, LANES, Job, TensorView

#: Bytes from which on a tensor is worth huge pages of 2 MiB.
_HUGE = 4 * 2**20


# ------------------------------------------------------------------ describing calls


def _empty_like(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Memory of the shape and dtype of a tensor, of huge pages where it is large.

    A large tensor is new memory, of which the kernel of the system clears every page
    that is touched: by pages of 4 KiB that takes as long as the convolution. NumPy
    asks for huge pages in the same way, from the same size on.
    """
    out = torch.empty_like(x, memory_format=layout)
    if out.nbytes >= _HUGE:
        library.call('pelk_use_huge_pages', out.data_ptr(), out.nbytes)
    return out


def _view(
    x: Tensor, layout: torch.memory_format = torch.contiguous_format
) -> TensorView:
    row_stride = x.stride(3) if layout == torch.channels_last else x.stride(1)
    return TensorView(x.data_ptr(), x.stride(0), row_stride)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.lru_cache(maxsize=1024)
def _array(grid: tuple[int, ...]) -> tuple[ctypes.Array, int]:
    """A grid as the library reads it, kept alive by the cache, and its address."""
    array = (ctypes.c_int32 * len(grid))(*grid)
    return array, ctypes.addressof(array)


def _job(x: Tensor, kernel: tuple[int, int] = (0, 0)) -> Job:
    """Describe a call with dense kernels."""
    return Job(
        library.instruction_sets()[library.require_instruction_set()],
        torch.get_num_threads(),
        DTYPES[x.dtype],
        *kernel,
        0,
        0,
        None,
        None,
        *x.shape,
        library.borrowed_threads(),
    )


def _fourier_job(
    x: Tensor,
    row_grid: Sequence[int],
    col_grid: Sequence[int],
    lengths: tuple[int, int],
) -> tuple[Job, tuple]:
    """Describe a call by Fourier transforms, and what its pointers need kept alive."""
    grids = _array(tuple(row_grid)), _array(tuple(col_grid))
    job = _job(x, (len(row_grid), len(col_grid)))
    job.vertical_length, job.horizontal_length = lengths
    job.row_grid, job.col_grid = grids[0][1], grids[1][1]
    return job, grids


# ---------------------------------------------------------------------------- layouts


def in_format(x: Tensor, wanted: torch.memory_format) -> Tensor:
    """Convert a map to a layout.

    Args:
        x: Feature map of shape (N, C, H, W), on the CPU, of a dtype in `DTYPES`.
        wanted: contiguous_format for dense planes at any distance from each other, or
            channels_last for pixels at any one distance from the next.

    Returns:
        `x` itself where it has that layout, else a copy.
    """
    if wanted == torch.contiguous_format and x.is_contiguous():
        return x
    found = memory_format(x)
    has_matrices = found == torch.channels_last or has_dense_planes(x)
    if found == wanted and has_matrices:
        return x
    if not (has_matrices and x.numel()):
        return x.contiguous(memory_format=wanted)
    out = _empty_like(x, wanted)
    _transpose(x, found, out, wanted)
    return out


def _transpose(
    x: Tensor, found: torch.memory_format, out: Tensor, wanted: torch.memory_format
) -> None:
    """Copy a map to one of the other layout."""
    channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
    size = (pixels, channels) if found == torch.channels_last else (channels, pixels)
    library.call('pelk_transpose', _job(x), _view(x, found), _view(out, wanted), *size)


def copy_into(planes: Tensor, out: Tensor) -> None:
    """Copy a contiguous map to the first channels of another, in either layout."""
    if memory_format(out) == torch.channels_last and planes.numel():
        _transpose(planes, torch.contiguous_format, out, torch.channels_last)
    else:
        out.copy_(planes)


# ------------------------------------------------------------------- sums over planes


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with dense kernels by direct sums; the output is contiguous."""
    out, x, weight, bias = _operands(x, weight, bias)
    library.call(
        'pelk_convolve',
        _job(x, (weight.shape[1], weight.shape[2])),
        _view(x),
        _address(weight),
        _address(bias),
        out.data_ptr(),
    )
    return out


def _operands(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Memory for the output, then the operands as the library reads them."""
    return (
        _empty_like(x, torch.contiguous_format),
        in_format(x, torch.contiguous_format),
        weight.float().contiguous(),
        None if bias is None else bias.float().contiguous(),
    )


def weight_grad(x: Tensor, grad: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Gradient of `convolve` to kernels of a size (kh, kw)."""
    out = torch.empty((x.shape[1], *kernel), dtype=torch.float32, device=x.device)
    x = in_format(x, torch.contiguous_format)
    grad = in_format(grad, torch.contiguous_format)
    library.call(
        'pelk_weight_grad',
        _job(x, kernel),
        _view(x),
        _view(grad),
        out.data_ptr(),
    )
    return out


# ----------------------------------------------------------------- Fourier transforms


def fourier_convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_grid: Sequence[int],
    col_grid: Sequence[int],
    lengths: tuple[int, int],
) -> Tensor:
    """Convolve by Fourier transforms with a kernel given by one parameter per cell.

    Args:
        x: The input.
        weight: Parameters of shape (C, rows, cols).
        bias: The bias.
        row_grid: Taps of each cell down the kernel, odd in sum.
        col_grid: Taps of each cell across the kernel, odd in sum.
        lengths: Lengths of the vertical and horizontal transforms
            (`Problem.transform_lengths`), the latter 0 for box sums along the rows.

    Returns:
        The output, contiguous.

    Raises:
        ValueError: There are no such transforms, or they are too short.
    """
    out, x, weight, bias = _operands(x, weight, bias)
    job, _grids = _fourier_job(x, row_grid, col_grid, lengths)
    library.call(
        'pelk_fourier_convolve',
        job,
        _view(x),
        _address(weight),
        _address(bias),
        out.data_ptr(),
    )
    return out


def fourier_gradients(
    x: Tensor | None,
    grad: Tensor,
    weight: Tensor | None,
    row_grid: Sequence[int],
    col_grid: Sequence[int],
    lengths: tuple[int, int],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `fourier_convolve`, which share their transforms.

    Args:
        x: The input; None where the gradient to the parameters is not wanted.
        grad: Gradient to the output.
        weight: As there; None where the gradient to the input is not wanted.
        row_grid: As there.
        col_grid: As there.
        lengths: As there.

    Returns:
        Gradients to the input, contiguous, and to the parameters, (C, rows, cols); None
        where not wanted.

    Raises:
        ValueError: There are no such transforms, or they are too short.
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
        job, _grids = _fourier_job(grad, row_grid, col_grid, lengths)
        library.call(
            'pelk_fourier_gradients',
            job,
            _view(grad if x is None else x),
            _view(grad),
            _address(weight),
            _address(grad_x),
            _address(grad_weight),
        )
    return grad_x, grad_weight


# ------------------------------------------------------------------ sums over channels


def _channel_padding(channels: int) -> int:
    """Channels to pad to the width of a vector."""
    if channels >= max(LANES.values()):
        return 0
    return max(0, LANES[library.require_instruction_set()] - channels)


def _pad_channels(x: Tensor) -> Tensor:
    """Append channels of zeros until there is a vector of them."""
    padding = _channel_padding(x.shape[1])
    if not padding:
        return x
    # torch.nn.functional.pad refuses maps of no pixels in PyTorch 2.6.
    count, _, *size = x.shape
    return torch.cat((x, x.new_zeros(count, padding, *size)), dim=1)


def convolve_pixels(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with dense kernels by sums over vectors of channels.

    The sums run where the channels of a pixel lie together; planes are packed into that
    layout one vector of channels at a time. The output has the layout of the input.
    """
    layout = memory_format(x)
    if not x.numel():
        return _empty_like(x, layout)
    channels, *kernel = weight.shape
    if _channel_padding(channels):
        if bias is not None:
            bias = _pad_channels(bias[None, :, None, None]).ravel()
        out = convolve_pixels(_pad_channels(x), _pad_channels(weight[None])[0], bias)
        return out[:, :channels].contiguous(memory_format=layout)
    x = in_format(x, layout)
    out = _empty_like(x, layout)
    weight = weight.float().contiguous()
    bias = None if bias is None else bias.float().contiguous()
    library.call(
        'pelk_convolve_pixels',
        _job(x, (kernel[0], kernel[1])),
        layout == torch.contiguous_format,
        _view(x, layout),
        _address(weight),
        _address(bias),
        _view(out, layout),
    )
    return out


def weight_grad_pixels(x: Tensor, grad: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Gradient of `convolve_pixels` to kernels of a size (kh, kw)."""
    channels, layout = x.shape[1], memory_format(grad)
    x, grad = (in_format(_pad_channels(maps), layout) for maps in (x, grad))
    out = torch.zeros(*kernel, x.shape[1], dtype=torch.float32, device=x.device)
    if x.numel():
        library.call(
            'pelk_weight_grad_pixels',
            _job(x, kernel),
            layout == torch.contiguous_format,
            _view(x, layout),
            _view(grad, layout),
            out.data_ptr(),
        )
    return out.permute(2, 0, 1)[:channels]
