"""PeLK: parameter-efficient large-kernel ConvNet with peripheral convolution.

Chen et al., CVPR 2024, https://arxiv.org/abs/2403.07589. The authors published
neither code nor weights; this is written from the paper.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pelk_mm.layers import (
    PartialPeripheralConv2d,
    check_sharing_grid,
    make_sharing_grid,
)
from pelk_mm.ops import box_sum
from pelk_mm.registry import register_model

from .base import Stage
from .convnext_style import SIZES, ConvNeXtStyleBackbone


class PeLKStage(Stage):
    """Blocks that share one kernel-wise positional embedding (PeLK, section 4.2).

    Args:
        blocks: Blocks with a `PartialPeripheralConv2d` of the same shape as mixer.
        with_cp: Whether to recompute activations in the backward pass.
        deploy: Whether the blocks are in their deployment form, which has the
            embedding in its biases.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], with_cp: bool = False, deploy: bool = False
    ) -> None:
        super().__init__(blocks, with_cp)
        self.position_embedding: nn.Parameter | None = None
        if not deploy:
            conv = self._convs()[0]
            self.sharing_grid: tuple[int, ...] = conv.sharing_grid
            self.position_embedding = nn.Parameter(
                torch.empty(conv.channels, conv.kernel_size, conv.kernel_size)
            )
            nn.init.trunc_normal_(self.position_embedding, std=0.02)

    def _convs(self) -> list[Any]:
        """Peripheral convolution of each block in the training form."""
        return [block.get_submodule('mixer.large.conv') for block in self.blocks]

    def block_args(self) -> tuple[Tensor, ...]:
        """The embedding summed over the grid's rectangles, (C_conv, k', k')."""
        if self.position_embedding is None:
            return ()
        return (box_sum(self.position_embedding, self.sharing_grid),)

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Fold the embedding into the biases of the blocks' convolutions."""
        if self.position_embedding is None:
            return
        embedding = box_sum(self.position_embedding.double(), self.sharing_grid)
        for conv in self._convs():
            bias = conv.embedding_bias(embedding).to(conv.weight.dtype)
            conv.bias = nn.Parameter(bias if conv.bias is None else conv.bias + bias)
        self.position_embedding = None


@register_model
class PeLK(ConvNeXtStyleBackbone):
    """PeLK backbone with feature maps at strides 4, 8, 16 and 32.

    Args:
        arch: ``tiny``, ``small``, ``base``, ``tiny-101``, ``small-101``,
            ``base-101``, or a dict with ``channels``, ``depths``, ``kernel_sizes``
            and ``central_radius`` (one for all stages or one each) and optionally
            ``width_factor`` (default 1), ``conv_ratio`` (share of the channels that
            is convolved, default 3/8), ``sharing_grids`` (one per stage, instead of
            those that ``central_radius`` gives) and ``small_kernel`` (size of a
            parallel dense kernel, default None).
        norm_cfg: Norm after each convolution of the token mixer, or None for none.
            The paper names none; a BatchNorm cancels the positional embedding.
        cell_means: Whether, in training, a weight of the grid multiplies the mean of
            its cell's pixels and not their sum: see `PeripheralConv2d`. Better from
            random weights in a short training; checkpoints are the same.
        kwargs: Arguments of `ConvNeXtStyleBackbone` from ``in_channels`` on.

    Raises:
        ValueError: If an argument is out of its range, a kernel size is even, or a
            grid does not sum to its kernel size.

    Examples:
        >>> model = PeLK('tiny')
        >>> [tuple(m.shape) for m in model(torch.rand(1, 3, 64, 64))]
        [(1, 124, 16, 16), (1, 249, 8, 8), (1, 499, 4, 4), (1, 998, 2, 2)]
    """

    arch_settings = {
        f'{size}{suffix}': dict(
            channels=channels,
            depths=depths,
            kernel_sizes=kernel_sizes,
            central_radius=central_radius,
            width_factor=1.3,
        )
        for size, (channels, depths) in SIZES.items()
        if size != 'large'
        for suffix, kernel_sizes, central_radius in (
            ('', (51, 49, 47, 13), 2),
            ('-101', (101, 69, 67, 13), 3),
        )
    }
    required_keys = ('channels', 'depths', 'kernel_sizes', 'central_radius')
    arch_defaults = dict(
        width_factor=1, conv_ratio=3 / 8, sharing_grids=None, small_kernel=None
    )

    def __init__(
        self,
        arch: str | dict[str, Any] = 'tiny',
        norm_cfg: dict | None = None,
        cell_means: bool = False,
        **kwargs: Any,
    ) -> None:
        settings = self.resolve_arch(arch)
        grids = self._sharing_grids(settings)

        def make_mixer(stage: int, width: int) -> PartialPeripheralConv2d:
            return PartialPeripheralConv2d(
                width,
                int(width * settings['conv_ratio']),
                grids[stage],
                settings['small_kernel'],
                norm_cfg,
                self.deploy,
                cell_means,
            )

        super().__init__(settings, make_mixer, **kwargs)
        # An arch of the user's own takes its sizes from the checkpoint.
        self.warm_start = f'pelk-{arch}' if isinstance(arch, str) else 'pelk'

    def make_stage(self, blocks: Sequence[nn.Module]) -> PeLKStage:
        """Make a stage, with one positional embedding, from its blocks."""
        return PeLKStage(blocks, self.with_cp, self.deploy)

    @staticmethod
    def _sharing_grids(settings: dict[str, Any]) -> list[tuple[int, ...]]:
        sizes, grids = settings['kernel_sizes'], settings['sharing_grids']
        if grids is not None:
            return list(map(check_sharing_grid, grids, sizes))
        radii = settings['central_radius']
        if isinstance(radii, int):
            radii = [radii] * len(sizes)
        return list(map(make_sharing_grid, sizes, radii))
