"""Memory layouts of feature maps, on any device."""

import torch
from torch import Tensor


def has_dense_planes(x: Tensor) -> bool:
    """Tell whether every plane of a map is contiguous.

    Args:
        x: Map of shape (N, C, H, W), on any device.

    Returns:
        True where each plane's rows follow each other, whatever the distance from
        plane to plane.
    """
    _, _, height, width = x.shape
    _, _, row, column = x.stride()
    return (column == 1 or width == 1) and (row == width or height == 1)


def memory_format(x: Tensor) -> torch.memory_format:
    """Find the layout that an operator's output has: its input's.

    Args:
        x: Input of shape (N, C, H, W), on any device.

    Returns:
        channels_last where the channels of a pixel lie together, also if they are a
        part of more channels; else contiguous_format.
    """
    if x.is_contiguous():
        return torch.contiguous_format
    _, channels, _, width = x.shape
    _, channel, row, column = x.stride()
    if (
        channel == 1
        and column >= channels
        and row == width * column
        and not has_dense_planes(x)
    ):
        return torch.channels_last
    return torch.contiguous_format
