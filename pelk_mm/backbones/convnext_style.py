"""ConvNeXt's pyramid around a token mixer, which PeLK and SLaK share.

Liu et al., "A ConvNet for the 2020s", CVPR 2022, https://arxiv.org/abs/2201.03545.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from pelk_mm.layers import ConvNeXtBlock, LayerNorm2d

from .base import LargeKernelBackbone, Stage

#: Channels and depths of ConvNeXt by size.
SIZES = {
    'tiny': ((96, 192, 384, 768), (3, 3, 9, 3)),
    'small': ((96, 192, 384, 768), (3, 3, 27, 3)),
    'base': ((128, 256, 512, 1024), (3, 3, 27, 3)),
    'large': ((192, 384, 768, 1536), (3, 3, 27, 3)),
}


class ConvNeXtStyleBackbone(LargeKernelBackbone):
    """A pyramid of `ConvNeXtBlock` stages.

    Stem: 4 x 4 convolution of stride 4, LayerNorm. Downsampling: LayerNorm, 2 x 2
    convolution of stride 2. A LayerNorm follows each output, unless told otherwise.

    Args:
        settings: ``channels`` and ``depths`` (blocks) of each stage, and
            ``width_factor``, which multiplies the channels and rounds them down.
        make_mixer: Makes a token mixer from the number of its stage and its width.
        in_channels: Channels of the images.
        drop_path_rate: Probability of dropping the last block's branch; it rises
            linearly from 0 at the first.
        layer_scale_init_value: Initial layer scale; 0 for none. The deployment form
            has it in the pointwise layer.
        output_norms: Whether a LayerNorm follows each output, as dense prediction needs
            it; classifiers have one after pooling, `PooledLayerNorm`.
        init_cfg: mmengine's initialisation config; by default truncated-normal
            weights (std 0.02).
        kwargs: ``out_indices``, ``frozen_stages``, ``norm_eval``, ``with_cp``,
            ``deploy`` and ``partial_weights`` of `LargeKernelBackbone`.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        make_mixer: Callable[[int, int], nn.Module],
        /,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        output_norms: bool = True,
        init_cfg: dict | list[dict] | None = None,
        **kwargs: Any,
    ) -> None:
        factor = settings['width_factor']
        channels = [int(width * factor) for width in settings['channels']]
        super().__init__(
            channels,
            settings['depths'],
            init_cfg=init_cfg
            or dict(
                type='TruncNormal',
                layer=['Conv2d', 'Linear', 'DepthwiseConv2d', 'PeripheralConv2d'],
                std=0.02,
            ),
            **kwargs,
        )
        rates = self._drop_path_rates(drop_path_rate)
        for i, width in enumerate(channels):
            if i == 0:
                downsample = nn.Sequential(
                    nn.Conv2d(in_channels, width, 4, stride=4), LayerNorm2d(width)
                )
            else:
                downsample = nn.Sequential(
                    LayerNorm2d(channels[i - 1]),
                    nn.Conv2d(channels[i - 1], width, 2, stride=2),
                )
            self.downsample_layers.append(downsample)
            blocks = [
                ConvNeXtBlock(
                    width,
                    make_mixer(i, width),
                    next(rates),
                    0 if self.deploy else layer_scale_init_value,
                )
                for _ in range(self.depths[i])
            ]
            self.stages.append(self.make_stage(blocks))
            if output_norms and i in self.out_indices:
                self.add_module(f'norm{i}', LayerNorm2d(width))
        self._freeze_stages()

    def make_stage(self, blocks: Sequence[nn.Module]) -> Stage:
        """Make a stage from its blocks."""
        return Stage(blocks, self.with_cp)

    def min_map_size(self, stage: int) -> int:
        """Least height and width that the downsampling before a stage needs."""
        return 4 if stage == 0 else 2
