"""A convolution between norms, and how the norms are folded into it."""

from collections.abc import Iterator
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from .norm import is_batch_norm


class ConvNorm(nn.Module):
    """A convolution, the norm after it and on request one before it.

    Args:
        conv: The convolution; further arguments of `forward` are handed to it.
        norm_cfg: mm config of the norms, or None for none.
        pre_norm: Whether such a norm precedes the convolution too. The convolution
            must then be an ungrouped 1 x 1 without padding: zeros padded after the norm
            are not normalised, so the norm could not be folded.

    Raises:
        ValueError: If ``pre_norm`` is given with another convolution.
    """

    def __init__(
        self, conv: nn.Module, norm_cfg: dict | None, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.pre_norm: nn.Module | None = None
        if pre_norm:
            if not isinstance(conv, nn.Conv2d) or (
                (conv.kernel_size, conv.padding, conv.groups) != ((1, 1), (0, 0), 1)
            ):
                raise ValueError(
                    f'pre_norm needs a plain 1 x 1 convolution, not {conv}'
                )
            self.pre_norm = _make_norm(norm_cfg, conv.in_channels)
        self.conv: Any = conv
        self.norm = _make_norm(norm_cfg, conv.get_parameter('weight').shape[0])

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        """Normalise and convolve ``x`` of shape (N, C, H, W)."""
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        return self.norm(self.conv(x, *args))

    def unfoldable(self) -> Iterator[tuple[str, str]]:
        """Norms that cannot be folded: the name of each and the reason."""
        for name in ('pre_norm', 'norm'):
            norm = getattr(self, name)
            if norm is None or isinstance(norm, nn.Identity):
                continue
            if not is_batch_norm(norm):
                kind = type(norm).__name__
                yield name, f'is a {kind}; only a BatchNorm can be folded'
            elif norm.running_mean is None:
                yield (
                    name,
                    'keeps no running statistics (track_running_stats=False) and '
                    'cannot be folded',
                )
            elif norm.training:
                yield (
                    name,
                    'normalises with the statistics of its batch and cannot be '
                    'folded; call eval() on the model first',
                )

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """Fold the norms into the convolution.

        Returns:
            The convolution, which now has a bias and computes the same as this module.

        Raises:
            TypeError: If a norm is of a kind that depends on its input.
        """
        conv = self.conv
        weight, bias = fold_norm(conv.weight, conv.bias, self.norm, self.pre_norm)
        conv.weight.copy_(weight)
        conv.bias = nn.Parameter(bias, requires_grad=conv.weight.requires_grad)
        return conv


def _make_norm(norm_cfg: dict | None, channels: int) -> nn.Module:
    if norm_cfg is None:
        return nn.Identity()
    return build_norm_layer(norm_cfg, channels)[1]


def fold_norm(
    weight: Tensor,
    bias: Tensor | None,
    norm: nn.Module,
    pre_norm: nn.Module | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals ``norm(conv(pre_norm(x)))``.

    Args:
        weight: The convolution's weight, output channels first.
        bias: Its bias of shape (C,), or None.
        norm: The BatchNorm after it, or an ``nn.Identity``.
        pre_norm: The BatchNorm before it, if the convolution is a 1 x 1, or None.

    Returns:
        The folded weight and bias, detached, computed in float64 and rounded once
        to the weight's dtype.

    Raises:
        TypeError: If a norm is of a kind that depends on its input.
    """
    kernel = weight.detach().double()
    shift = kernel.new_zeros(len(kernel))
    if bias is not None:
        shift += bias.detach()
    if pre_norm is not None:
        scale, offset = _affine(pre_norm, kernel.new_ones(kernel.shape[1]))
        shift += kernel.flatten(1) @ offset
        kernel = kernel * scale.view(1, -1, 1, 1)
    scale, offset = _affine(norm, torch.ones_like(shift))
    kernel = kernel * scale.view(-1, *[1] * (kernel.ndim - 1))
    return kernel.to(weight.dtype), (shift * scale + offset).to(weight.dtype)


def _affine(norm: Any, ones: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset per channel that a norm in evaluation mode applies."""
    if isinstance(norm, nn.Identity):
        return ones, torch.zeros_like(ones)
    if not is_batch_norm(norm):
        raise TypeError(
            f'{type(norm).__name__} cannot be folded into a convolution; only a '
            'BatchNorm can'
        )
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    offset = -norm.running_mean.double() * scale
    if norm.bias is not None:
        offset = offset + norm.bias.detach().double()
    return scale, offset
