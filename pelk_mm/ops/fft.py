"""Depthwise convolution by torch's real Fourier transforms, and their lengths.

The cost does not depend on the kernel's size except through the padding, so this is
the way for large dense kernels where the compiled ones (`csrc/fourier.cpp`, of the same
lengths) are missing. Computed in float32 or float64.
"""

import functools

import torch
from torch import Tensor

# Conjugates are computed, not lazy: in a compiled graph torch does not look at the mark
# that a lazy one carries.

# Complex numbers held at a time for one of the operands: bounds the memory.
_CHUNK = 1 << 22


@functools.cache
def fast_length(least: int) -> int:
    """Find the shortest even length of small prime factors.

    Args:
        least: Length needed.

    Returns:
        The smallest 2^a 3^b 5^c, a >= 1, that is no less.
    """
    length = max(2, least + least % 2)
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 2


def lengths(x_shape: tuple[int, ...], kernel: tuple[int, int]) -> tuple[int, int]:
    """Transform lengths of a 'same' convolution.

    Args:
        x_shape: Shape (..., H, W) of the input.
        kernel: Size (kh, kw) of the kernel.

    Returns:
        Lengths down and along. Half a kernel of zeros is enough, as what wraps
        around from the other half falls on the same zeros.
    """
    return tuple(
        fast_length(size + taps // 2)
        for size, taps in zip(x_shape[-2:], kernel, strict=True)
    )


def _chunks(x: Tensor, size: tuple[int, int]) -> list[slice]:
    step = max(1, _CHUNK // max(1, x.shape[0] * size[0] * (size[1] // 2 + 1)))
    return [slice(c, c + step) for c in range(0, x.shape[1], step)]


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve every channel with its kernel, zero padding that keeps the size.

    Args:
        x: Input of shape (N, C, H, W), float32 or float64.
        weight: Kernels of shape (C, kh, kw), odd, kh < 2H and kw < 2W.

    Returns:
        Output of shape (N, C, H, W).
    """
    height, width = x.shape[-2:]
    kh, kw = weight.shape[-2:]
    size = lengths(x.shape, (kh, kw))
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for part in _chunks(x, size):
        padded = weight.new_zeros(weight[part].shape[0], *size)
        padded[:, :kh, :kw] = weight[part]
        # The centre of the kernel goes to the origin.
        padded = padded.roll((-(kh // 2), -(kw // 2)), (-2, -1))
        spectrum = torch.fft.rfft2(x[:, part], s=size)
        spectrum *= torch.fft.rfft2(padded).conj_physical_()
        out[:, part] = torch.fft.irfft2(spectrum, s=size)[..., :height, :width]
    return out


def weight_grad(x: Tensor, grad: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Gradient of `convolve` to its kernels.

    Args:
        x: Input of shape (N, C, H, W), float32 or float64.
        grad: Gradient to the output, of the same shape.
        kernel: Size (kh, kw) of the kernels, odd, kh < 2H and kw < 2W.

    Returns:
        Gradient of shape (C, kh, kw).
    """
    kh, kw = kernel
    size = lengths(x.shape, kernel)
    out = x.new_empty(x.shape[1], kh, kw)
    for part in _chunks(x, size):
        spectrum = torch.fft.rfft2(grad[:, part], s=size).conj_physical_()
        spectrum *= torch.fft.rfft2(x[:, part], s=size)
        lags = torch.fft.irfft2(spectrum.sum(0), s=size)
        out[part] = lags.roll((kh // 2, kw // 2), (-2, -1))[:, :kh, :kw]
    return out
