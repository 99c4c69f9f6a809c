"""The residual block that PeLK and SLaK take from ConvNeXt."""

from collections.abc import Callable

import torch
from mmcv.cnn.bricks.drop import DropPath
from torch import Tensor, nn

from .pointwise import PointwiseLinear, add_in_chunks, gelu_


class ConvNeXtBlock(nn.Module):
    """Token mixer, LayerNorm, two pointwise layers, layer scale, drop path, residual.

    Args:
        channels: C.
        mixer: Token mixer of (N, C, H, W) maps that keeps their shape.
        drop_path_rate: Probability of dropping the residual branch, in [0, 1).
        layer_scale_init_value: Initial scale of the branch; 0 for no scale.
        expansion_ratio: Width of the hidden pointwise layer over C.
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        expansion_ratio: int = 4,
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pointwise_conv1 = PointwiseLinear(channels, expansion_ratio * channels)
        self.act = nn.GELU()
        self.pointwise_conv2 = PointwiseLinear(expansion_ratio * channels, channels)
        self.gamma = (
            nn.Parameter(torch.full((channels,), float(layer_scale_init_value)))
            if layer_scale_init_value > 0
            else None
        )
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(self, x: Tensor, *mixer_args: Tensor) -> Tensor:
        """Apply the block to ``x`` of shape (N, C, H, W); the shape stays.

        Args:
            x: The feature map.
            mixer_args: Further arguments of the token mixer.
        """
        mixed = self.mixer(x, *mixer_args)
        layers = self.pointwise_conv1, self.act, self.pointwise_conv2
        parts = self.norm, *layers, self.drop_path
        width = self.pointwise_conv1.out_features
        out = add_in_chunks(x, mixed, self._branch, width, self, parts)
        if out is not None:
            return out
        branch = self._branch(mixed.permute(0, 2, 3, 1), self.act).permute(0, 3, 1, 2)
        return x + self.drop_path(branch)

    def _branch(
        self, pixels: Tensor, act: Callable[[Tensor], Tensor] = gelu_
    ) -> Tensor:
        """What comes between the mixer and the drop path, (..., C) to (..., C)."""
        hidden = self.pointwise_conv1(self.norm(pixels))
        out = self.pointwise_conv2(act(hidden))
        return out if self.gamma is None else out * self.gamma

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Fold the layer scale into the second pointwise layer."""
        if self.gamma is None:
            return
        layer = self.pointwise_conv2
        scale = self.gamma.double()
        layer.weight.copy_(layer.weight.double() * scale.unsqueeze(1))
        layer.bias.copy_(layer.bias.double() * scale)
        self.gamma = None
