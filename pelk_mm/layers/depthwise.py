"""Depthwise convolution with a large kernel of any shape."""

import torch
import torch.nn.functional as F
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from pelk_mm.ops import depthwise_conv2d

from .sharing_grid import check_kernel_size


class DepthwiseConv2d(nn.Module):
    """Depthwise convolution, stride 1, zero padding that keeps the size.

    Args:
        channels: C.
        kernel_size: (kh, kw), both odd, or one odd size for both.
        bias: Whether to add a bias per channel.

    Raises:
        ValueError: If a kernel size is not a positive odd integer.
    """

    def __init__(
        self, channels: int, kernel_size: int | tuple[int, int], bias: bool = False
    ) -> None:
        super().__init__()
        self.channels = channels
        self.kernel_size: tuple[int, int] = tuple(to_2tuple(kernel_size))
        for size in self.kernel_size:
            check_kernel_size(size)
        self.weight = nn.Parameter(torch.empty(channels, 1, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape (N, C, H, W); the shape stays."""
        return depthwise_conv2d(x, kernels_of(self.weight), self.bias)

    def absorbs(self, kernel_size: tuple[int, int]) -> bool:
        """Whether a kernel of this size can be added to the centre of this one."""
        return all(a <= b for a, b in zip(kernel_size, self.kernel_size, strict=True))

    def extra_repr(self) -> str:
        """Channels and kernel size, for ``repr``."""
        return f'{self.channels}, kernel_size={self.kernel_size}'


def kernels_of(weight: Tensor) -> Tensor:
    """View of a depthwise convolution's weight (C, 1, kh, kw) as (C, kh, kw).

    The gradient comes back in the strides of the weight, those of its single input
    channel too: DistributedDataParallel compares them all.
    """
    if weight.stride(1) == 1:  # channels_last
        return weight.permute(0, 2, 3, 1).squeeze(3)
    return weight.squeeze(1)


def add_centred(large: Tensor, small: Tensor) -> Tensor:
    """Add a small kernel onto the centre of a large one.

    Args:
        large: Kernels of shape (..., kh, kw).
        small: Kernels of odd sizes that are no larger, same leading axes.

    Returns:
        Kernels of the shape of ``large``.
    """
    dh, dw = (
        (a - b) // 2 for a, b in zip(large.shape[-2:], small.shape[-2:], strict=True)
    )
    return large + F.pad(small, (dw, dw, dh, dh))
