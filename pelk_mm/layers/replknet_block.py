"""RepLKNet's two residual blocks (section 4.1 and figure 4 of its paper)."""

from typing import Any

import torch.nn.functional as F
from mmcv.cnn.bricks.drop import DropPath
from torch import Tensor, nn

from .conv_norm import ConvNorm
from .pointwise import PointwiseConv2d, add_in_chunks, add_residual, gelu_, relu


class _Residual(nn.Module):
    """1 x 1 convolution, `between`, 1 x 1 convolution, drop path, residual.

    The arguments are those of `ConvFFN`.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        norm_cfg: dict | None,
        drop_path_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        conv1 = PointwiseConv2d(channels, hidden_channels, bias=deploy)
        conv2 = PointwiseConv2d(hidden_channels, channels, bias=deploy)
        self.pointwise_conv1: Any = (
            conv1 if deploy else ConvNorm(conv1, norm_cfg, pre_norm=True)
        )
        self.pointwise_conv2: Any = conv2 if deploy else ConvNorm(conv2, norm_cfg)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def between(self, x: Tensor) -> Tensor:
        """Transform ``x`` of shape (N, C_hidden, H, W); the shape stays."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to ``x`` of shape (N, C, H, W); the shape stays."""
        out = self.pointwise_conv2(self.between(self.pointwise_conv1(x)))
        return add_residual(
            x, self.drop_path(out), self.pointwise_conv2, self.drop_path
        )


class RepLKBlock(_Residual):
    """Norm, 1 x 1, ReLU, large kernel, ReLU, 1 x 1; a norm after each convolution.

    The arguments are those of `ConvFFN` and ``mixer``, a token mixer of
    (N, hidden_channels, H, W) maps, norms included.
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        hidden_channels: int,
        norm_cfg: dict | None,
        drop_path_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        super().__init__(channels, hidden_channels, norm_cfg, drop_path_rate, deploy)
        self.mixer = mixer

    def between(self, x: Tensor) -> Tensor:
        """ReLU, the mixer, ReLU."""
        out = self.mixer(relu(x, self.pointwise_conv1))
        return relu(out, self.mixer)


class ConvFFN(_Residual):
    """Norm, 1 x 1, GELU, 1 x 1; a norm after each convolution.

    Args:
        channels: C.
        hidden_channels: Channels between the two 1 x 1 convolutions.
        norm_cfg: mm config of the norms.
        drop_path_rate: Probability of dropping the residual branch, in [0, 1).
        deploy: Whether to build the deployment form: convolutions with biases.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to ``x`` of shape (N, C, H, W); the shape stays."""
        first, second = self.pointwise_conv1, self.pointwise_conv2
        if isinstance(first, PointwiseConv2d) and isinstance(second, PointwiseConv2d):
            parts = first, second, self.drop_path
            width = first.out_channels
            out = add_in_chunks(x, x, self._on_rows, width, self, parts)
            if out is not None:
                return out
        return super().forward(x)

    def _on_rows(self, pixels: Tensor) -> Tensor:
        hidden = self.pointwise_conv1.on_rows(pixels)
        return self.pointwise_conv2.on_rows(gelu_(hidden))

    def between(self, x: Tensor) -> Tensor:
        """The exact (erf) GELU."""
        return F.gelu(x)
