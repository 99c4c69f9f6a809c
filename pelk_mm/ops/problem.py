"""What a backend has to know of a convolution, in one value."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .layout import memory_format
from .switch import is_plain


class Problem(NamedTuple):
    """A depthwise convolution of stride 1 whose zero padding keeps the size.

    Attributes:
        shape: Shape (N, C, H, W) of the input and the output.
        kernel: Size (kh, kw) of the kernels, clipped to the input: of an axis of n
            pixels the middle 2n - 1 taps are all that can be in bounds.
        grid: Sharing grid of a peripheral convolution; None where every tap has a
            parameter of its own.
        dtype: Data type of input and output.
        device: Type of the device: 'cpu', 'cuda', ...
        channels_last: Whether the maps are in that layout.
        plain: Whether torch's own operators alone may run (`pelk_mm.ops.plain`). The
            sizes of the map may be symbolic then, so that nothing is asked of them:
            the kernel is not clipped, and the layout of the maps is not known.
    """

    shape: tuple[int, ...]
    kernel: tuple[int, int]
    grid: tuple[int, ...] | None = None
    dtype: torch.dtype = torch.float32
    device: str = 'cpu'
    channels_last: bool = False
    plain: bool = False

    @classmethod
    def of(
        cls, x: Tensor, weight: Tensor, sharing_grid: Sequence[int] | None
    ) -> 'Problem':
        """Describe a convolution.

        Args:
            x: Input, or gradient to the output, of shape (N, C, H, W).
            weight: Kernels of shape (C, kh, kw), or the parameters (C, k', k') that
                a sharing grid spreads.
            sharing_grid: Its k' cell sizes, or None.
        """
        shape = tuple(x.shape)
        if sharing_grid is None:
            grid, rows, cols = None, weight.shape[1], weight.shape[2]
        else:
            grid = tuple(sharing_grid)
            rows = cols = sum(grid)
        plain = is_plain()
        channels_last = False
        if not plain:
            rows = min(rows, max(1, 2 * shape[2] - 1))
            cols = min(cols, max(1, 2 * shape[3] - 1))
            channels_last = memory_format(x) == torch.channels_last
        return cls(
            shape, (rows, cols), grid, x.dtype, x.device.type, channels_last, plain
        )

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of the maps."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def accumulation_dtype(self) -> torch.dtype:
        """Data type of the sums and of gradients to parameters."""
        return accumulation_dtype(self.dtype)

    @property
    def cells(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Taps of each parameter's cell down and along a kernel."""
        if self.grid is None:
            return (1,) * self.kernel[0], (1,) * self.kernel[1]
        return self.grid, self.grid

    @property
    def flipped(self) -> 'Problem':
        """The convolution that gives the input's gradient, its kernel flipped."""
        return self if self.grid is None else self._replace(grid=self.grid[::-1])

    @property
    def transform_lengths(self) -> tuple[int, int]:
        """Lengths down and along of the Fourier transforms that it takes.

        Half a kernel of zeros is enough, as what wraps around from the other half
        falls on the same zeros.
        """
        (_, _, height, width), (rows, cols) = self.shape, self.kernel
        return fast_length(height + rows // 2), fast_length(width + cols // 2)

    # What expected times depend on.

    @property
    def planes(self) -> int:
        """Planes of the input, at least one."""
        return max(1, self.shape[0] * self.shape[1])

    @property
    def batch(self) -> int:
        """Images of the input, at least one."""
        return max(1, self.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a plane, at least one."""
        return max(1, self.shape[2]), max(1, self.shape[3])

    @property
    def pixels(self) -> int:
        """Pixels of a plane."""
        return self.size[0] * self.size[1]

    def valid_taps(self, axis: int) -> float:
        """In-bounds taps along an axis, on average over its pixels."""
        size = self.size[axis]
        radius = min(self.kernel[axis] // 2, size - 1)
        return 2 * radius + 1 - radius * (radius + 1) / size

    @property
    def products(self) -> float:
        """Multiply-adds of a plane and its dense kernel."""
        return self.pixels * self.valid_taps(0) * self.valid_taps(1)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Data type in which sums of numbers of a type are kept: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a data type as messages give it."""
    return str(dtype).removeprefix('torch.')


@functools.lru_cache(maxsize=4096)
def fast_length(least: int) -> int:
    """Find the shortest even length of small prime factors.

    Args:
        least: Length needed.

    Returns:
        The smallest 2^a 3^b 5^c, a >= 1, that is no less.
    """
    length = max(2, least + least % 2)
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 2
