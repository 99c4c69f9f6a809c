"""Plain-torch definitions of the large-kernel operators.

They run on any device and in any dtype that torch convolves, are differentiable
to any order, and are what every faster backend is held to.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Depthwise convolution, stride 1, zero padding that keeps the size.

    Args:
        x: Input of shape (N, C, H, W).
        weight: Kernels of shape (C, kh, kw), kh and kw odd.
        bias: Optional bias of shape (C,).

    Returns:
        Output of shape (N, C, H, W).
    """
    kh, kw = weight.shape[-2:]
    # In NCHW torch's depthwise kernels are an order of magnitude slower, on the
    # CPU and (for kernels of 7 and above, which cuDNN never sees) on CUDA.
    x = x.contiguous(memory_format=torch.channels_last)
    return F.conv2d(
        x, weight.unsqueeze(1), bias, padding=(kh // 2, kw // 2), groups=x.shape[1]
    )


def expand_kernel(weight: Tensor, sharing_grid: Sequence[int]) -> Tensor:
    """Give every position of a sharing grid's rectangles their parameter.

    Args:
        weight: Parameters of shape (..., k', k').
        sharing_grid: Cell sizes along either axis, k' of them, K in sum.

    Returns:
        Kernels of shape (..., K, K) (PeLK, section 4.1).
    """
    # Views and sizes only: ONNX exporters know neither repeat_interleave nor the shape
    # that it gives.
    for axis in (-2, -1):
        shape = [-1] * weight.ndim
        cells = []
        for cell, size in zip(weight.split(1, axis), sharing_grid, strict=True):
            shape[axis] = size
            cells.append(cell.expand(shape))
        weight = torch.cat(cells, axis)
    return weight


def box_sum(kernel: Tensor, sharing_grid: Sequence[int]) -> Tensor:
    """Sum over the rectangles of a sharing grid, the adjoint of `expand_kernel`.

    Args:
        kernel: Values of shape (..., K, K).
        sharing_grid: Cell sizes along either axis, k' of them, K in sum.

    Returns:
        Sums of shape (..., k', k').
    """
    for axis in (-2, -1):
        cells = kernel.split(tuple(sharing_grid), axis)
        kernel = torch.cat([cell.sum(axis, keepdim=True) for cell in cells], axis)
    return kernel


def peripheral_conv2d(
    x: Tensor,
    weight: Tensor,
    sharing_grid: Sequence[int],
    bias: Tensor | None = None,
) -> Tensor:
    """Peripheral convolution by expanding its kernel (PeLK, section 4.1).

    Args:
        x: Input of shape (N, C, H, W).
        weight: Shared parameters of shape (C, k', k').
        sharing_grid: Cell sizes along either axis, k' of them; their sum K, the
            kernel size, is odd.
        bias: Optional bias of shape (C,).

    Returns:
        Output of shape (N, C, H, W).
    """
    return depthwise_conv2d(x, expand_kernel(weight, sharing_grid), bias)
