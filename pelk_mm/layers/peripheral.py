"""Peripheral convolution, whole and partial (PeLK, sections 4.1 to 4.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pelk_mm.ops import peripheral_conv2d

from .depthwise import ConvNorm, DepthwiseConv2d, add_centred, fold_norm
from .sharing_grid import check_sharing_grid


class PeripheralConv2d(nn.Module):
    """Depthwise K x K convolution with parameters shared towards the periphery.

    Args:
        channels: C.
        sharing_grid: Cell sizes along one axis, k' of them; their sum K is odd.
        bias: Whether to add a bias per channel.

    Raises:
        ValueError: If the grid does not make an odd kernel of positive cells.
    """

    def __init__(
        self, channels: int, sharing_grid: Sequence[int], bias: bool = False
    ) -> None:
        super().__init__()
        self.channels = channels
        self.kernel_size = sum(sharing_grid)
        self.sharing_grid = check_sharing_grid(sharing_grid, self.kernel_size)
        cells = len(self.sharing_grid)
        self.weight = nn.Parameter(torch.empty(channels, 1, cells, cells))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Convolve ``x`` of shape (N, C, H, W); the shape stays.

        Args:
            x: The feature map.
            embedding: The kernel-wise positional embedding summed over the grid's
                rectangles, (C, k', k').
        """
        bias = self.bias if embedding is None else self.embedding_bias(embedding)
        return peripheral_conv2d(x, self.weight.squeeze(1), self.sharing_grid, bias)

    def embedding_bias(self, embedding: Tensor) -> Tensor:
        """What a positional embedding adds to each channel: <w, h>, (C,).

        With the input zero outside the map and the embedding h present at every
        tap, Eq. 3 of the paper is conv(X, w) + <w, h>; a rectangle's positions
        share one parameter, so h enters through its sum over the rectangle.
        """
        return (self.weight.squeeze(1) * embedding).sum((-2, -1))

    def extra_repr(self) -> str:
        """Channels, kernel size and grid, for ``repr``."""
        return (
            f'{self.channels}, kernel_size={self.kernel_size}, '
            f'sharing_grid={self.sharing_grid}'
        )


class PartialPeripheralConv2d(nn.Module):
    """Peripheral convolution of the first channels; the rest pass (section 4.3).

    Args:
        channels: C of the feature map.
        conv_channels: How many of the channels are convolved, the first ones.
        sharing_grid: Cell sizes along one axis of the kernel.
        small_kernel: Size of a parallel dense kernel, or None for none.
        norm_cfg: Norm behind each of the convolutions, or None for none. A
            BatchNorm cancels what the positional embedding adds.
        deploy: Whether to build the deployment form: one convolution with a bias.

    Raises:
        ValueError: If the small kernel is larger than the large one.
    """

    def __init__(
        self,
        channels: int,
        conv_channels: int,
        sharing_grid: Sequence[int],
        small_kernel: int | None = None,
        norm_cfg: dict | None = None,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.split_sizes = (conv_channels, channels - conv_channels)
        conv = PeripheralConv2d(conv_channels, sharing_grid, bias=deploy)
        self.large = ConvNorm(conv, None if deploy else norm_cfg)
        self.small: ConvNorm | None = None
        if small_kernel is None:
            return
        if small_kernel > conv.kernel_size:
            raise ValueError(
                f'small_kernel {small_kernel} is larger than the large kernel '
                f'{conv.kernel_size}'
            )
        if not (deploy and self._fits_centre(small_kernel)):
            small = DepthwiseConv2d(conv_channels, small_kernel, bias=deploy)
            self.small = ConvNorm(small, None if deploy else norm_cfg)

    def _fits_centre(self, small_kernel: int) -> bool:
        """Whether the grid keeps a parameter per position under the small kernel."""
        cells = self.large.conv.sharing_grid
        edge = (len(cells) - small_kernel) // 2
        centred = sum(cells[:edge]) == sum(cells[edge + small_kernel :])
        return centred and edge >= 0 and set(cells[edge : edge + small_kernel]) == {1}

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Mix ``x`` of shape (N, C, H, W); the shape stays.

        Args:
            x: The feature map.
            embedding: The positional embedding summed over the grid's rectangles,
                (conv_channels, k', k').
        """
        head, rest = x.split(self.split_sizes, dim=1)
        out = self.large(head, embedding)
        if self.small is not None:
            out = out + self.small(head)
        return torch.cat((out, rest), dim=1)

    @torch.no_grad()
    def fold(self, embedding: Tensor) -> None:
        """Fold embedding, norms and (where the grid allows) the small kernel."""
        conv = self.large.conv
        weight, bias = fold_norm(
            conv.weight, conv.embedding_bias(embedding), self.large.norm
        )
        if self.small is not None:
            small = self.small.conv
            small_weight, small_bias = fold_norm(
                small.weight, small.bias, self.small.norm
            )
            if self._fits_centre(small.kernel_size[0]):
                weight = add_centred(weight, small_weight)
                bias = bias + small_bias
                self.small = None
            else:
                small.weight.copy_(small_weight)
                small.bias = nn.Parameter(small_bias)
                self.small.norm = nn.Identity()
        conv.weight.copy_(weight)
        conv.bias = nn.Parameter(bias)
        self.large.norm = nn.Identity()
