"""What ConvNeXt's classifiers have between the last map and the linear layer."""

from collections.abc import Sequence

from torch import Tensor, nn

from pelk_mm.registry import register_model


@register_model
class PooledLayerNorm(nn.LayerNorm):
    """Mean of the last feature map over its pixels, and LayerNorm of the result.

    A ``neck`` for mmpretrain's classifiers. ConvNeXt's, SLaK's and PeLK's have it
    instead of the norms that follow the outputs of their backbones in dense prediction.

    Args:
        channels: Channels of the last map.
        eps: Added to the variance; 1e-6 as in ConvNeXt and SLaK.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor]:  # type: ignore[override]
        """Pool and normalise.

        Args:
            maps: Feature maps, of which the last has the shape (N, channels, H, W).

        Returns:
            One tensor of shape (N, channels).
        """
        return (super().forward(maps[-1].mean((-2, -1))),)
