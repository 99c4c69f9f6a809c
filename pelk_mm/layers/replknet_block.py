"""RepLKNet's two residual blocks (section 4.1 and figure 4 of its paper)."""

import torch.nn.functional as F
from mmcv.cnn.bricks.drop import DropPath
from torch import Tensor, nn

from .conv_norm import ConvNorm


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
        conv1 = nn.Conv2d(channels, hidden_channels, 1, bias=deploy)
        conv2 = nn.Conv2d(hidden_channels, channels, 1, bias=deploy)
        self.pointwise_conv1 = (
            conv1 if deploy else ConvNorm(conv1, norm_cfg, pre_norm=True)
        )
        self.pointwise_conv2 = conv2 if deploy else ConvNorm(conv2, norm_cfg)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def between(self, x: Tensor) -> Tensor:
        """Transform ``x`` of shape (N, C_hidden, H, W); the shape stays."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to ``x`` of shape (N, C, H, W); the shape stays."""
        out = self.pointwise_conv2(self.between(self.pointwise_conv1(x)))
        return x + self.drop_path(out)


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
        return F.relu(self.mixer(F.relu(x)))


class ConvFFN(_Residual):
    """Norm, 1 x 1, GELU, 1 x 1; a norm after each convolution.

    Args:
        channels: C.
        hidden_channels: Channels between the two 1 x 1 convolutions.
        norm_cfg: mm config of the norms.
        drop_path_rate: Probability of dropping the residual branch, in [0, 1).
        deploy: Whether to build the deployment form: convolutions with biases.
    """

    def between(self, x: Tensor) -> Tensor:
        """The exact (erf) GELU."""
        return F.gelu(x)
