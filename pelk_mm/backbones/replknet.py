"""RepLKNet: 31 x 31 depthwise convolutions with re-parameterised small kernels.

Ding et al., "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in
CNNs", CVPR 2022, https://arxiv.org/abs/2203.06717. Code and weights of the authors:
https://github.com/DingXiaoH/RepLKNet-pytorch.
"""

from itertools import islice
from typing import Any

from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from pelk_mm.layers import (
    ConvFFN,
    ConvNorm,
    PointwiseConv2d,
    ReparamDepthwise,
    RepLKBlock,
    large_and_small,
    relu,
)
from pelk_mm.registry import register_model

from .base import BATCH_NORM, LargeKernelBackbone, Stage


class ReLUSequential(nn.Sequential):
    """Layers in sequence with a ReLU after each."""

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers over ``x`` of shape (N, C, H, W)."""
        for layer in self:
            x = relu(layer(x), layer)
        return x


@register_model
class RepLKNet(LargeKernelBackbone):
    """RepLKNet backbone with feature maps at strides 4, 8, 16 and 32.

    Args:
        arch: ``31B``, ``31L``, ``XL``, or a dict with ``channels``, ``depths`` (a
            layer is a large-kernel block and a conv FFN) and ``kernel_sizes`` and
            optionally ``small_kernel`` (default 5; None for none), ``dw_ratio``
            (channels of the large kernel over those of the stage, default 1) and
            ``ffn_ratio`` (channels of the FFN's hidden layer over those of the stage,
            default 4).
        in_channels: Channels of the images.
        drop_path_rate: Probability of dropping the branches of the last layer; it
            rises linearly from 0 at the first.
        norm_cfg: Norm after each convolution and at the start of each block.
        norm_intermediate_features: Whether a norm follows each output, as in the
            dense-prediction models of XL only.
        small_kernel_merged: Whether the large and small kernels alone are built in
            their deployment form, as in released models that were merged.
        init_cfg: mmengine's initialisation config; by default torch's own
            initialisation of convolutions, as in the released code.
        kwargs: ``out_indices``, ``frozen_stages``, ``norm_eval``, ``with_cp``,
            ``deploy`` and ``partial_weights`` of `LargeKernelBackbone`.

    Raises:
        ValueError: If an argument is out of its range, a kernel size is even, or the
            small kernel is larger than the large one.
    """

    arch_settings = {
        '31B': dict(
            channels=(128, 256, 512, 1024),
            depths=(2, 2, 18, 2),
            kernel_sizes=(31, 29, 27, 13),
        ),
        '31L': dict(
            channels=(192, 384, 768, 1536),
            depths=(2, 2, 18, 2),
            kernel_sizes=(31, 29, 27, 13),
        ),
        'XL': dict(
            channels=(256, 512, 1024, 2048),
            depths=(2, 2, 18, 2),
            kernel_sizes=(27, 27, 27, 13),
            small_kernel=None,
            dw_ratio=1.5,
        ),
    }
    arch_defaults = dict(small_kernel=5, dw_ratio=1, ffn_ratio=4)
    blocks_per_layer = 2

    def __init__(
        self,
        arch: str | dict[str, Any] = '31B',
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        norm_cfg: dict = BATCH_NORM,
        norm_intermediate_features: bool = False,
        small_kernel_merged: bool = False,
        init_cfg: dict | list[dict] | None = None,
        **kwargs: Any,
    ) -> None:
        settings = self.resolve_arch(arch)
        super().__init__(
            settings['channels'],
            settings['depths'],
            init_cfg=init_cfg
            or dict(
                type='Kaiming',
                layer=['Conv2d', 'DepthwiseConv2d'],
                a=5**0.5,
                mode='fan_in',
                nonlinearity='leaky_relu',
                distribution='uniform',
            ),
            **kwargs,
        )
        deploy = self.deploy

        def conv_norm(
            in_width: int, width: int, kernel: int, stride: int = 1, groups: int = 1
        ) -> nn.Module:
            conv: nn.Module = (
                PointwiseConv2d(in_width, width, bias=deploy)
                if kernel == 1
                else nn.Conv2d(
                    in_width,
                    width,
                    kernel,
                    stride,
                    kernel // 2,
                    groups=groups,
                    bias=deploy,
                )
            )
            return conv if deploy else ConvNorm(conv, norm_cfg)

        def depthwise(width: int, stride: int) -> nn.Module:
            return conv_norm(width, width, 3, stride, groups=width)

        rates = self._drop_path_rates(drop_path_rate)
        in_widths = (self.channels[0], *self.channels)  # the stem has its own already
        for i, width in enumerate(self.channels):
            downsample: list[nn.Module] = []
            if i == 0:
                downsample.append(conv_norm(in_channels, width, 3, stride=2))
                downsample.append(depthwise(width, stride=1))
            downsample.append(conv_norm(in_widths[i], width, 1))
            downsample.append(depthwise(width, stride=2))
            self.downsample_layers.append(ReLUSequential(*downsample))
            dw_width = int(width * settings['dw_ratio'])
            ffn_width = int(width * settings['ffn_ratio'])
            sizes = settings['kernel_sizes'][i], settings['small_kernel']
            blocks: list[nn.Module] = []
            for rate in islice(rates, self.depths[i]):
                convs = large_and_small(dw_width, *sizes)
                mixer = ReparamDepthwise(convs, norm_cfg, deploy or small_kernel_merged)
                blocks += [
                    RepLKBlock(width, mixer, dw_width, norm_cfg, rate, deploy),
                    ConvFFN(width, ffn_width, norm_cfg, rate, deploy),
                ]
            self.stages.append(Stage(blocks, self.with_cp))
            if norm_intermediate_features and i in self.out_indices:
                self.add_module(f'norm{i}', build_norm_layer(norm_cfg, width)[1])
        self._freeze_stages()
