"""Peripheral convolution of all channels and of some (PeLK, sections 4.1 to 4.3)."""

from collections.abc import Sequence
from typing import Any

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
        cell_means: Whether ``weight`` multiplies the mean of a cell's pixels, to within
            a factor of 1.5, and not their sum. A cell of 81 pixels then weighs no more
            than one of a single pixel, neither at first nor in a step of Adam. The
            function is the same, and so are checkpoints, which have the paper's sums.

    Attributes:
        cell_units: What ``weight`` is multiplied by to be the paper's, (k', k'), or
            None for 1. Powers of two, so that saving and loading rounds nothing.

    Raises:
        ValueError: If the grid does not make an odd kernel of positive cells.
    """

    def __init__(
        self,
        channels: int,
        sharing_grid: Sequence[int],
        bias: bool = False,
        cell_means: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.kernel_size = sum(sharing_grid)
        self.sharing_grid = check_sharing_grid(sharing_grid, self.kernel_size)
        cells = len(self.sharing_grid)
        self.weight = nn.Parameter(torch.empty(channels, 1, cells, cells))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.cell_units: Tensor | None
        units = _units(self.sharing_grid) if cell_means else None
        self.register_buffer('cell_units', units, persistent=False)

    def sum_weight(self) -> Tensor:
        """The weight that multiplies the sum of a cell's pixels, (C, 1, k', k')."""
        return self.weight if self.cell_units is None else self.weight * self.cell_units

    @torch.no_grad()
    def merge_cell_units(self) -> None:
        """Make ``weight`` the paper's, as in checkpoints and in deployment."""
        self.weight.copy_(self.sum_weight())
        self.cell_units = None

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.cell_units is not None:
            name = f'{prefix}weight'
            destination[name] = destination[name] * self.cell_units

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        name, units = f'{prefix}weight', self.cell_units
        given: Any = state_dict.get(name)
        # What has another shape is refused by torch, which names it.
        if units is not None and getattr(given, 'shape', None) == self.weight.shape:
            # In a copy: the dict is the caller's.
            state_dict = {**state_dict, name: given / units.to(given.device)}
        super()._load_from_state_dict(state_dict, prefix, *args)

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
        weight = kernels_of(self.sum_weight())
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
        return _inner_product(kernels_of(self.sum_weight()), embedding)

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


def _units(grid: Sequence[int]) -> Tensor:
    """The powers of two nearest to 1 / area of each cell, (k', k')."""
    sides = torch.tensor(grid, dtype=torch.float64)
    return torch.outer(sides, sides).log2().round().neg().exp2().float()


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
        cell_means: As for `PeripheralConv2d`; the deployment form has none.

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
        cell_means: bool = False,
    ) -> None:
        if not 1 <= conv_channels <= channels:
            raise ValueError(
                f'{conv_channels} of {channels} channels cannot be convolved; choose '
                'a conv_ratio in (0, 1] that leaves at least one'
            )
        large = PeripheralConv2d(
            conv_channels, sharing_grid, cell_means=cell_means and not deploy
        )
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

    def switch_to_deploy(self) -> None:
        """Fold the norms and merge kernels that fit into the large one."""
        for module in self.modules():
            if isinstance(module, PeripheralConv2d):
                module.merge_cell_units()
        super().switch_to_deploy()

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
