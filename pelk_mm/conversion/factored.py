"""Large depthwise convolutions as other runtimes compute them fast.

The positions of a sharing grid's rectangle have one parameter (PeLK, section 4.1), so
what a rectangle adds is that parameter times the sum of the map over the rectangle. A
box sum is a convolution with ones along each axis, and all rectangles of a size share
it. With cells of b rows and c columns at offsets (r, s),

    y = sum over b of V_b( sum over c of D_bc( H_c(x) ) ),

where H_c sums c neighbouring columns, V_b sums b neighbouring rows, and D_bc is a
dilated depthwise convolution with the parameters of the rectangles of b x c. All are
ordinary convolutions of torch, which every exporter and converter knows.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelk_mm.backbones.pelk import PeLKStage
from pelk_mm.layers import DepthwiseConv2d, PartialPeripheralConv2d, PeripheralConv2d
from pelk_mm.layers.depthwise import kernels_of
from pelk_mm.ops.reference import expand_kernel

#: Smallest cell that gets box sums; smaller ones are a dense kernel around the centre.
#: Of 2, 4 and 8 it is the fastest or close to it in onnxruntime and OpenVINO.
MIN_BOX = 4
#: onnxruntime's fast depthwise convolutions need channels in multiples of this; for any
#: other number it unfolds the map, which takes four times as long with 51 x 51.
CHANNEL_MULTIPLE = 4


class Taps(NamedTuple):
    """Equally spaced boxes of one size along an axis.

    Attributes:
        size: Positions that a box sums.
        offsets: First position of each box, from the centre of the kernel.
        cells: Number of the grid's cell that each box lies in.
    """

    size: int
    offsets: tuple[int, ...]
    cells: tuple[int, ...]

    @property
    def dilation(self) -> int:
        """Distance between neighbouring boxes."""
        return self.offsets[1] - self.offsets[0] if len(self.offsets) > 1 else 1


def _runs(size: int, taps: Sequence[tuple[int, int]]) -> Iterator[Taps]:
    """Split boxes, mirrored at the centre, into equally spaced ones."""
    offsets = [offset for offset, _ in taps]
    gaps = {b - a for a, b in zip(offsets, offsets[1:], strict=False)}
    if len(gaps) > 1:
        yield from _runs(size, (taps[0], taps[-1]))
        yield from _runs(size, taps[1:-1])
    elif taps:
        yield Taps(size, tuple(offsets), tuple(cell for _, cell in taps))


def split_grid(sharing_grid: Sequence[int], min_box: int = MIN_BOX) -> list[Taps]:
    """Boxes along one axis that together are a sharing grid.

    Args:
        sharing_grid: Cell sizes from edge to edge, symmetric, with an odd sum.
        min_box: Cells of this size and above are one box each; of smaller ones every
            position is a box of its own.

    Returns:
        Boxes by size, ascending; [those of size 1] where no cell is large enough.

    Raises:
        ValueError: If the grid is not symmetric: a box sum would need padding that
            differs from side to side, which torch's convolution has not.
    """
    if tuple(sharing_grid) != tuple(sharing_grid)[::-1]:
        raise ValueError(f'sharing_grid {tuple(sharing_grid)} is not symmetric')
    taps: dict[int, list[tuple[int, int]]] = {}
    position = -(sum(sharing_grid) // 2)
    for cell, size in enumerate(sharing_grid):
        if size >= min_box:
            taps.setdefault(size, []).append((position, cell))
        else:
            single = ((position + step, cell) for step in range(size))
            taps.setdefault(1, []).extend(single)
        position += size
    return [run for size in sorted(taps) for run in _runs(size, taps[size])]


class _Term(NamedTuple):
    """One dilated convolution, D of the rectangles of a size, or a part of them."""

    columns: int
    name: str
    padding: tuple[int, int]
    dilation: tuple[int, int]


class _Wider(nn.Module):
    """Depthwise kernels for as many channels as a runtime's fast path asks for.

    Args:
        channels: How many there are kernels for.
        spare: How many channels of the input come after them and pass unchanged.
    """

    def __init__(self, channels: int, spare: int) -> None:
        super().__init__()
        self.channels = channels
        missing = -channels % CHANNEL_MULTIPLE
        #: Channels that pass, convolved with a kernel that leaves them as they are.
        self.passing = missing if missing <= spare else 0
        #: Channels of zeros.
        self.zeros = missing - self.passing

    def kernels(self, weight: Tensor, centre: tuple[int, int]) -> Tensor:
        """Add the kernels of the further channels: (C, kh, kw) becomes (C', kh, kw)."""
        more = weight.new_zeros(self.passing + self.zeros, *weight.shape[1:])
        more[: self.passing, centre[0], centre[1]] = 1
        return torch.cat((weight, more))

    def bias(self, bias: Tensor | None, like: Tensor) -> Tensor:
        """Add the biases of the further channels: (C,) becomes (C',)."""
        bias = like.new_zeros(self.channels) if bias is None else bias
        return F.pad(bias, (0, self.passing + self.zeros))

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve (N, C', H, W); the shape stays."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, embedding: Tensor | None = None, partial: bool = False
    ) -> Tensor:
        """Convolve the first channels of ``x``, (N, C + others, H, W).

        Args:
            x: The feature map.
            embedding: None: biases have it.
            partial: Whether there may be other channels, which pass unchanged.
        """
        if embedding is not None:
            raise ValueError('the positional embedding is in the biases already')
        width = self.channels + self.passing
        rest = x[:, width:] if partial and x.shape[1] > width else None
        first = x if rest is None else x[:, :width]
        if self.zeros:
            first = F.pad(first, (0, 0, 0, 0, 0, self.zeros))
        y = self.convolve(first)
        if self.zeros:
            y = y[:, :width]
        return y if rest is None else torch.cat((y, rest), dim=1)


class DenseConv2d(_Wider):
    """A depthwise convolution as one of torch's, a kernel for each channel.

    Args:
        weight: Kernels of shape (C, kh, kw), kh and kw odd.
        bias: Of shape (C,), or None.
        spare: How many channels of the input come after those C and pass unchanged.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, spare: int = 0) -> None:
        super().__init__(len(weight), spare)
        kh, kw = weight.shape[1:]
        self.padding = (kh // 2, kw // 2)
        kernels = self.kernels(weight, self.padding).unsqueeze(1)
        self.weight = nn.Parameter(kernels, requires_grad=False)
        self.shift = nn.Parameter(self.bias(bias, weight), requires_grad=False)

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve (N, C', H, W); the shape stays."""
        return F.conv2d(
            x, self.weight, self.shift, padding=self.padding, groups=len(self.weight)
        )


class FactoredConv2d(_Wider):
    """A peripheral convolution of box sums and small dilated convolutions.

    Args:
        weight: Parameters of shape (C, k', k').
        sharing_grid: Cell sizes along either axis, k' of them, symmetric.
        bias: Of shape (C,), or None.
        spare: How many channels of the input come after those C and pass unchanged.
        min_box: Smallest cell that gets box sums.

    Raises:
        ValueError: If the grid is not symmetric.
    """

    def __init__(
        self,
        weight: Tensor,
        sharing_grid: Sequence[int],
        bias: Tensor | None,
        spare: int = 0,
        min_box: int = MIN_BOX,
    ) -> None:
        middle = len(sharing_grid) // 2
        # A kernel that passes a channel is one parameter of one position.
        super().__init__(len(weight), spare if sharing_grid[middle] == 1 else 0)
        runs = split_grid(sharing_grid, min_box)
        self.groups = len(weight) + self.passing + self.zeros
        weight = self.kernels(weight, (middle, middle))
        sizes = sorted({run.size for run in runs})
        #: Terms by the number of rows that are summed after them, the largest first.
        self.terms: dict[int, list[_Term]] = {size: [] for size in sizes[::-1]}
        for rows in runs:
            for columns in runs:
                part = weight[:, list(rows.cells)][:, :, list(columns.cells)]
                name = f'weight{len(self._parameters)}'
                self._keep(name, part.unsqueeze(1))
                # Of a sum of b rows every summand is wanted, b - 1 of them outside of
                # the map; of a sum of c columns all are there, outside of it too.
                padding = (-rows.offsets[0], 1 - columns.offsets[0] - columns.size)
                dilation = (rows.dilation, columns.dilation)
                term = _Term(columns.size, name, padding, dilation)
                self.terms[rows.size].append(term)
        for size in set(sizes) - {1}:
            self._keep(f'columns{size}', weight.new_ones(self.groups, 1, 1, size))
            self._keep(f'rows{size}', weight.new_ones(self.groups, 1, size, 1))
        self._keep('shift', self.bias(bias, weight))

    def _keep(self, name: str, values: Tensor) -> None:
        parameter = nn.Parameter(values.contiguous(), requires_grad=False)
        self.register_parameter(name, parameter)

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve (N, C', H, W); the shape stays."""
        sums = {
            size: x if size == 1 else self._convolve(x, f'columns{size}', (0, size - 1))
            for size in self.terms
        }
        total: Any = None
        for rows, terms in self.terms.items():
            part: Any = None
            for term in terms:
                y = self._convolve(sums[term.columns], *term[1:])
                part = y if part is None else part + y
            if rows > 1:
                part = self._convolve(part, f'rows{rows}')
            total = part if total is None else total + part
        return total + self.get_parameter('shift').view(-1, 1, 1)

    def _convolve(
        self,
        x: Tensor,
        name: str,
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
    ) -> Tensor:
        weight = self.get_parameter(name)
        return F.conv2d(x, weight, None, 1, padding, dilation, self.groups)


class Convolutions(NamedTuple):
    """What became of a model's large depthwise convolutions.

    Attributes:
        factored: Kernel sizes of those that are box sums now, one for each.
        dense: Kernel sizes of those that are dense, (rows, columns) of each.
    """

    factored: list[int]
    dense: list[tuple[int, int]]


@torch.no_grad()
def use_torch_convolutions(model: nn.Module, factored: bool = False) -> Convolutions:
    """Make a model's large depthwise convolutions torch's own, in place.

    Kernels are written out, positional embeddings become biases, and channels are
    filled up to what onnxruntime's fast convolutions need. The model computes the same
    as before, up to rounding, in evaluation mode; it is meant to be exported, not to be
    trained or saved.

    Args:
        model: A model with a backbone of this package in any form, or the backbone.
        factored: Whether peripheral convolutions whose cells are large enough become
            box sums, a `FactoredConv2d` each. Kernels that are shared too little for it
            stay dense, as do those of grids that are not symmetric.

    Returns:
        The kernel sizes of either kind.
    """
    done = Convolutions([], [])
    for stage in list(model.modules()):
        if isinstance(stage, PeLKStage):
            stage.switch_to_deploy()
    spare = {
        conv: mixer.split_sizes[1]
        for mixer in model.modules()
        if isinstance(mixer, PartialPeripheralConv2d) and mixer.passes_others()
        for conv in mixer.modules()
    }
    for parent in list(model.modules()):
        for name, conv in list(parent.named_children()):
            if isinstance(conv, (PeripheralConv2d, DepthwiseConv2d)):
                new = _torch_convolution(conv, spare.get(conv, 0), factored, done)
                setattr(parent, name, new)
    return done


def _torch_convolution(
    conv: Any, spare: int, factored: bool, done: Convolutions
) -> nn.Module:
    weight = kernels_of(conv.weight)
    if isinstance(conv, PeripheralConv2d):
        grid = conv.sharing_grid
        if factored and max(grid) >= MIN_BOX and grid == grid[::-1]:
            done.factored.append(conv.kernel_size)
            return FactoredConv2d(weight, grid, conv.bias, spare)
        weight = expand_kernel(weight, grid)
    done.dense.append((weight.shape[1], weight.shape[2]))
    return DenseConv2d(weight, conv.bias, spare)
