"""Adaptive pooling whose exported form takes maps of any size."""

from typing import Any

import torch
from torch import Tensor, nn


class MatrixAdaptiveAvgPool2d(nn.Module):
    """What ``nn.AdaptiveAvgPool2d`` computes, as a product with two matrices.

    Exporters fix the sizes of the maps in torch's own, whose bins they write out. Here
    the matrices, with the weight of each row or column in each bin, are computed from
    the sizes at run time.

    Args:
        output_size: Bins along both axes, or along each: a number, or None for as many
            as the map has rows or columns.
    """

    def __init__(self, output_size: int | None | tuple[int | None, int | None]) -> None:
        super().__init__()
        if not isinstance(output_size, tuple):
            output_size = (output_size, output_size)
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``x`` of shape (..., H, W) into (..., rows of bins, columns of bins)."""
        rows, columns = self.output_size
        if columns == 1:
            x = x.mean(-1, keepdim=True)
        elif columns is not None:
            x = x @ averaging_matrix(columns, x.shape[-1], x).T
        if rows == 1:
            x = x.mean(-2, keepdim=True)
        elif rows is not None:
            x = averaging_matrix(rows, x.shape[-2], x) @ x
        return x

    def extra_repr(self) -> str:
        """Numbers of bins, for ``repr``."""
        return f'output_size={self.output_size}'


def averaging_matrix(bins: int, size: int, like: Tensor) -> Tensor:
    """Matrix that averages the bins of an axis, as adaptive pooling divides it.

    Bin i begins at floor(i size / bins) and ends before ceil((i + 1) size / bins); bins
    overlap where the numbers do not divide, and repeat where the axis is shorter.

    Args:
        bins: How many, n.
        size: Length of the axis, which may be symbolic.
        like: A tensor whose device and dtype the matrix gets.

    Returns:
        Matrix of shape (n, size), whose rows sum to 1.
    """
    number = torch.arange(bins, device=like.device).unsqueeze(1)
    start = torch.div(number * size, bins, rounding_mode='floor')
    end = torch.div((number + 1) * size + (bins - 1), bins, rounding_mode='floor')
    position = torch.arange(size, device=like.device)
    inside = (position >= start) & (position < end)
    return inside.to(like.dtype) / (end - start).to(like.dtype)


def open_adaptive_pooling(model: nn.Module) -> int:
    """Replace the adaptive average poolings of a model, in place.

    Args:
        model: The model; a ``nn.AdaptiveAvgPool2d`` in it becomes a
            `MatrixAdaptiveAvgPool2d`, equal up to rounding for maps of any size.

    Returns:
        How many there were.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.AdaptiveAvgPool2d:
                size: Any = child.output_size
                size = tuple(size) if isinstance(size, list) else size
                setattr(parent, name, MatrixAdaptiveAvgPool2d(size))
                count += 1
    return count
