"""SLaK: ConvNeXt with sparse stripes of 51 x 5 and 5 x 51.

Liu et al., "More ConvNets in the 2020s: Scaling up Kernels Beyond 51x51 using
Sparsity", ICLR 2023, https://arxiv.org/abs/2207.03620. Code and weights of the
authors: https://github.com/VITA-Group/SLaK.
"""

from typing import Any

from pelk_mm.layers import ReparamDepthwise, large_and_small, stripes_and_small
from pelk_mm.registry import register_model

from .base import BATCH_NORM
from .convnext_style import SIZES, ConvNeXtStyleBackbone


@register_model
class SLaK(ConvNeXtStyleBackbone):
    """SLaK backbone with feature maps at strides 4, 8, 16 and 32.

    The dynamic sparsity of the paper is not part of the model: a sparse checkpoint
    carries zeros, and a hook of `pelk_mm.sparsity` keeps them in training.

    Args:
        arch: ``tiny``, ``small``, ``base``, ``large`` (of the released code, not of
            the paper), or a dict with ``channels``, ``depths`` and ``kernel_sizes``
            and optionally ``small_kernel`` (short side of the stripes and size of the
            parallel kernel, default 5; None only for the dense form),
            ``width_factor`` (default 1) and ``decomposed`` (stripes if true, one
            dense K x K kernel if not; default true).
        norm_cfg: Norm after each convolution of the token mixer, or None for none.
        small_kernel_merged: Whether the token mixers alone are built in their
            deployment form, as in released models that were merged.
        kwargs: Arguments of `ConvNeXtStyleBackbone` from ``in_channels`` on.

    Raises:
        ValueError: If an argument is out of its range, a kernel size is even, or the
            small kernel is larger than the large one.
    """

    arch_settings = {
        name: dict(
            channels=channels,
            depths=depths,
            kernel_sizes=(51, 49, 47, 13),
            width_factor=1.3,
        )
        for name, (channels, depths) in SIZES.items()
    }
    arch_defaults = dict(small_kernel=5, width_factor=1, decomposed=True)

    def __init__(
        self,
        arch: str | dict[str, Any] = 'tiny',
        norm_cfg: dict | None = BATCH_NORM,
        small_kernel_merged: bool = False,
        **kwargs: Any,
    ) -> None:
        settings = self.resolve_arch(arch)
        small_kernel = settings['small_kernel']
        if settings['decomposed'] and small_kernel is None:
            raise ValueError(
                'small_kernel None leaves the stripes of SLaK without a short side; '
                'give an odd size or decomposed=False'
            )
        branches = stripes_and_small if settings['decomposed'] else large_and_small

        def make_mixer(stage: int, width: int) -> ReparamDepthwise:
            convs = branches(width, settings['kernel_sizes'][stage], small_kernel)
            return ReparamDepthwise(convs, norm_cfg, self.deploy or small_kernel_merged)

        super().__init__(settings, make_mixer, **kwargs)
