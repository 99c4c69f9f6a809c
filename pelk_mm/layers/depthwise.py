"""Depthwise convolutions with a norm behind them, and how the two become one."""

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
        if isinstance(kernel_size, int):
            kernel_size = (kernel_size, kernel_size)
        for size in kernel_size:
            check_kernel_size(size)
        self.channels = channels
        self.kernel_size = tuple(kernel_size)
        self.weight = nn.Parameter(torch.empty(channels, 1, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape (N, C, H, W); the shape stays."""
        return depthwise_conv2d(x, self.weight.squeeze(1), self.bias)

    def extra_repr(self) -> str:
        """Channels and kernel size, for ``repr``."""
        return f'{self.channels}, kernel_size={self.kernel_size}'


class ConvNorm(nn.Module):
    """A convolution over ``conv.channels`` channels and the norm behind it.

    Args:
        conv: The convolution; further arguments of `forward` are handed to it.
        norm_cfg: mm config of the norm, or None for none.
    """

    def __init__(self, conv: nn.Module, norm_cfg: dict | None) -> None:
        super().__init__()
        self.conv = conv
        self.norm = (
            nn.Identity()
            if norm_cfg is None
            else build_norm_layer(norm_cfg, conv.channels)[1]
        )

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        """Convolve and normalise ``x`` of shape (N, C, H, W)."""
        return self.norm(self.conv(x, *args))


def fold_norm(
    weight: Tensor, bias: Tensor | None, norm: nn.Module
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals ``norm(conv(x))``.

    Args:
        weight: The convolution's weight, output channels first.
        bias: Its bias of shape (C,), or None.
        norm: The BatchNorm behind it, or an ``nn.Identity``.

    Returns:
        The folded weight and bias, detached, of the weight's dtype.

    Raises:
        TypeError: If the norm is of a kind that depends on its input.
    """
    scale = weight.new_ones(weight.shape[0], dtype=torch.float64)
    shift = torch.zeros_like(scale) if bias is None else bias.detach().double()
    if isinstance(norm, _BatchNorm):
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight.detach().double()
        shift = (shift - norm.running_mean.double()) * scale
        if norm.affine:
            shift = shift + norm.bias.detach().double()
    elif not isinstance(norm, nn.Identity):
        raise TypeError(
            f'{type(norm).__name__} cannot be folded into a convolution; only a '
            'BatchNorm can'
        )
    folded = weight.detach().double() * scale.view(-1, *[1] * (weight.ndim - 1))
    return folded.to(weight.dtype), shift.to(weight.dtype)


def add_centred(large: Tensor, small: Tensor) -> Tensor:
    """Add a small kernel onto the centre of a large one.

    Args:
        large: Kernels of shape (..., kh, kw).
        small: Kernels of odd sizes no larger, same leading axes.

    Returns:
        Kernels of the shape of ``large``.
    """
    dh, dw = (
        (a - b) // 2 for a, b in zip(large.shape[-2:], small.shape[-2:], strict=True)
    )
    return large + F.pad(small, (dw, dw, dh, dh))
