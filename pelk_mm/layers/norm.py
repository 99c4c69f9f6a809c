"""LayerNorm over the channels of a feature map, and which norms are BatchNorms."""

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from mmcv.cnn import is_norm
from torch import Tensor, nn

#: The other kinds of norm that `is_norm` knows.
_NOT_BATCH_NORM = (
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
)


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm, torch's or what mmengine makes of a SyncBN.

    mmengine's ``revert_sync_batchnorm`` makes norms of a private class, which has only
    the private base class of torch's BatchNorms in common with them.
    """
    return is_norm(module, exclude=_NOT_BATCH_NORM)


def batch_norms(module: nn.Module) -> Iterator[Any]:
    """BatchNorms among a module and its descendants."""
    return filter(is_batch_norm, module.modules())


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channel axis of an (N, C, H, W) feature map.

    Args:
        num_channels: C.
        eps: Added to the variance; 1e-6 as in ConvNeXt and SLaK.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(num_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape (N, C, H, W)."""
        x = F.layer_norm(
            x.permute(0, 2, 3, 1),
            self.normalized_shape,
            self.weight,
            self.bias,
            self.eps,
        )
        return x.permute(0, 3, 1, 2)
