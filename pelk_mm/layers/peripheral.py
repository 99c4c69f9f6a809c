"""Peripheral convolution of all channels and of some (PeLK, sections 4.1 to 4.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pelk_mm.ops import peripheral_conv2d

from .depthwise import DepthwiseConv2d, kernels_of
from .reparam import ReparamDepthwise, check_small_kernel
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

    def forward(
        self, x: Tensor, embedding: Tensor | None = None, partial: bool = False
    ) -> Tensor:
        """Convolve ``x`` of shape (N, C, H, W); the shape stays.

        Args:
            x: The feature map.
            embedding: The kernel-wise positional embedding summed over the grid's
                rectangles, (C, k', k').
            partial: Whether ``x`` may have more channels, which pass unchanged.
        """
        # One view for both uses: a sum of two gradients has strides of its own.
        weight = kernels_of(self.weight)
        bias: Tensor | None = self.bias
        if embedding is not None:
            shift = _inner_product(weight, embedding)
            bias = shift if bias is None else bias + shift
        return peripheral_conv2d(x, weight, self.sharing_grid, bias, partial=partial)

    def embedding_bias(self, embedding: Tensor) -> Tensor:
        """What a positional embedding adds to each channel: <w, h>, (C,).

        Eq. 3 of the paper adds the embedding h to the input at every tap, those in the
        zero padding included, so it equals conv(X, w) + <w, h>. The positions of a
        rectangle share one parameter, so h enters as its sum over the rectangle.
        """
        return _inner_product(kernels_of(self.weight), embedding)

    def absorbs(self, kernel_size: tuple[int, int]) -> bool:
        """Whether a dense kernel of this size can be added to the centre.

        It can where the grid keeps one parameter per position.
        """
        grid = self.sharing_grid
        edges = [(len(grid) - size) // 2 for size in kernel_size]
        return all(
            edge >= 0
            and set(grid[edge : edge + size]) == {1}
            and sum(grid[:edge]) == sum(grid[edge + size :])
            for edge, size in zip(edges, kernel_size, strict=True)
        )

    def extra_repr(self) -> str:
        """Channels, kernel size and grid, for ``repr``."""
        return (
            f'{self.channels}, kernel_size={self.kernel_size}, '
            f'sharing_grid={self.sharing_grid}'
        )


def _inner_product(weight: Tensor, embedding: Tensor) -> Tensor:
    return (weight * embedding).sum((-2, -1))


class PartialPeripheralConv2d(ReparamDepthwise):
    """Peripheral convolution of the first channels only (PeLK, section 4.3).

    The other channels pass through unchanged.

    Args:
        channels: C of the feature map.
        conv_channels: How many channels are convolved, counted from the first.
        sharing_grid: Cell sizes along one axis of the kernel.
        small_kernel: Size of a parallel dense kernel, or None for none.
        norm_cfg: Norm after each of the convolutions, or None for none. A
            BatchNorm cancels what the positional embedding adds.
        deploy: Whether to build the deployment form: one convolution with a bias,
            and a second for a small kernel that does not fit the grid's centre.

    Raises:
        ValueError: If the small kernel is larger than the large one, or
            ``conv_channels`` is not between 1 and ``channels``.
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
        if not 1 <= conv_channels <= channels:
            raise ValueError(
                f'{conv_channels} of {channels} channels cannot be convolved; choose '
                'a conv_ratio in (0, 1] that leaves at least one'
            )
        large = PeripheralConv2d(conv_channels, sharing_grid)
        convs: dict[str, nn.Module] = {'large': large}
        if small_kernel is not None:
            check_small_kernel(small_kernel, large.kernel_size)
            convs['small'] = DepthwiseConv2d(conv_channels, small_kernel)
        super().__init__(convs, norm_cfg, deploy)
        self.split_sizes = (conv_channels, channels - conv_channels)

    def passes_others(self) -> bool:
        """Whether the convolution itself passes the other channels.

        It does where nothing comes between the convolution and the channels' places.
        """
        only, *others = self.children()
        norm = getattr(only, 'norm', None)
        return not others and (norm is None or isinstance(norm, nn.Identity))

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        """Mix ``x`` of shape (N, C, H, W); the shape stays.

        Args:
            x: The feature map.
            args: Nothing, or the positional embedding summed over the grid's
                rectangles, (conv_channels, k', k').
        """
        if self.passes_others():
            only = next(self.children())
            return only(x, *(args or (None,)), True)
        convolved, rest = x.split(self.split_sizes, dim=1)
        return torch.cat((super().forward(convolved, *args), rest), dim=1)
