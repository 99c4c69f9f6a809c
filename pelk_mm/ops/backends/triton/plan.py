"""What the kernels multiply: planes of a map, rows of a kernel, and the list of both.

A convolution is a sum of matrix products. For every cell of rows of the kernel, the
sums of the map's rows under it (a *plane* of box sums) are multiplied by the banded
Toeplitz matrix of the cell's row of taps. Tensor cores take 16-bit operands, so what
has more digits goes in as two or three *parts*, each exact, whose products add up:

========  =======================  ====================  ===========
dtype     a row of the map         a sum of rows         a weight
========  =======================  ====================  ===========
bfloat16  itself                   2 parts, 16 bits      rounded
float16   itself                   2 parts, 22 bits      rounded
float32   3 bfloat16, 24 bits      3 bfloat16, 24 bits   3 bfloat16
========  =======================  ====================  ===========

Pure Python, without triton: `benchmarks/gpu_kernels.py` and the cost model count by it.
"""

import functools
import itertools
from typing import NamedTuple

import torch

from ...problem import Problem

#: Elements of 16 bytes of 16-bit operands: what all offsets are multiples of.
VECTOR = 8
#: Bytes of scratch of one launch, unless one plane of one image takes more. It is less
#: than the cache of the level shared by a GPU, so that scratch is read from there.
SCRATCH_BYTES = 24 << 20


#: Cycles of a Hopper multiprocessor, by the counts of `benchmarks/gpu_kernels.py`: of a
#: program apart from its steps, its first loads and its stores; of an element of a
#: plane laid out, and of a row added to it.
PROGRAM_CLOCKS, ELEMENT_CLOCKS, ROW_CLOCKS = 1000, 0.2, 0.03


class Cell(NamedTuple):
    """Adjacent taps along an axis that share a parameter.

    Attributes:
        parameter: Its index.
        start: First tap, 0 at the kernel's centre.
        length: Number of taps.
    """

    parameter: int
    start: int
    length: int


class Split(NamedTuple):
    """How numbers of a dtype become operands of tensor cores.

    Attributes:
        operand: The operands' dtype.
        row: Parts of an element of the map.
        sums: Parts of a box sum.
        weight: Parts of a weight.
        pairs: Which parts of the map and of the weight are multiplied.
        low_scale: What the second part of a box sum is multiplied by.
    """

    operand: torch.dtype
    row: int
    sums: int
    weight: int
    low_scale: float = 1.0

    def pairs(self, parts: int) -> list[tuple[int, int]]:
        """Parts of the map and of the weight whose product is not below the last bit.

        Args:
            parts: Parts of what is multiplied by a weight.
        """
        last = max(parts, self.weight) - 1
        return [
            (i, j) for i in range(parts) for j in range(self.weight) if i + j <= last
        ]


SPLITS: dict[torch.dtype, Split] = {
    torch.float32: Split(torch.bfloat16, 3, 3, 3),
    torch.bfloat16: Split(torch.bfloat16, 1, 2, 1),
    # The second part keeps 11 more bits of sums so small that the first has fewer.
    torch.float16: Split(torch.float16, 1, 2, 1, low_scale=2.0**11),
}


class Product(NamedTuple):
    """A plane, moved by some rows, times a row of weights."""

    plane: int
    offset: int
    row: int
    #: Of float16's scales: 0 for low parts, 1 for high parts, 2 for single rows.
    phase: int


class Tile(NamedTuple):
    """A variant of the kernels.

    Attributes:
        rows: Rows of the output that a program computes.
        columns: Columns of it.
        depth: Columns of the map that a step multiplies.
        columns_first: Whether columns of the output are rows of the accumulator.
        warps: Warps of a program.
        stages: Steps whose operands are in shared memory.
    """

    rows: int
    columns: int
    depth: int
    columns_first: bool
    warps: int
    stages: int

    @property
    def name(self) -> str:
        """What tables call it."""
        return f'{self.rows}x{self.columns}x{self.depth}'


#: By the first number of the compute capability, from large to small maps. Hopper's
#: and later tensor cores take more columns at a time and leave more registers.
TILES: dict[int, tuple[Tile, ...]] = {
    8: (
        Tile(256, 64, 64, False, 8, 3),
        Tile(128, 64, 64, False, 8, 3),
        Tile(128, 32, 32, False, 4, 3),
        Tile(64, 16, 32, False, 4, 3),
    ),
    9: (
        Tile(256, 64, 64, True, 4, 2),
        Tile(128, 64, 64, True, 4, 3),
        Tile(128, 32, 32, False, 4, 3),
        Tile(64, 16, 32, False, 4, 3),
    ),
}


def tiles_of(capability: int) -> tuple[Tile, ...]:
    """The variants for GPUs of a compute capability, given its first number."""
    return TILES[min(max(capability, min(TILES)), max(TILES))]


def cells(sizes: tuple[int, ...], pixels: int) -> tuple[Cell, ...]:
    """Cells of an axis, clipped to the taps that can be in bounds.

    Args:
        sizes: Taps of each cell, odd in sum.
        pixels: Size of the map along the axis.
    """
    found, start = [], -(sum(sizes) // 2)
    for index, size in enumerate(sizes):
        first, end = max(start, 1 - pixels), min(start + size, pixels)
        if first < end:
            found.append(Cell(index, first, end - first))
        start += size
    return tuple(found)


def up(number: int, step: int) -> int:
    """The next multiple."""
    return -(-number // step) * step


class Plan:
    """Everything about a problem that its map's values do not change.

    Args:
        problem: What is computed.
        taps: Cell sizes down and along the kernels, not clipped.
        transposed: Whether rows and columns trade places.
    """

    def __init__(
        self,
        problem: Problem,
        taps: tuple[tuple[int, ...], tuple[int, ...]],
        transposed: bool,
    ) -> None:
        self.split = SPLITS[problem.dtype]
        self.transposed = transposed
        images, channels, *size = problem.shape
        order = (1, 0) if transposed else (0, 1)
        self.images, self.channels = images, channels
        self.height, self.width = (size[axis] for axis in order)
        self.row_cells, self.column_cells = (
            cells(taps[axis], size[axis]) for axis in order
        )
        self.reach = -self.row_cells[0].start
        self.side = -self.column_cells[0].start
        #: Columns left of a tile that it reads.
        self.left = up(self.side, VECTOR)
        # Zeros after each row and after each image serve the next one too.
        self.pitch = up(self.width + self.left, VECTOR)
        self.image_rows = self.height + max(1, self.reach)
        # A cell that a small map clips has no sum of its own, as no new size of a map
        # may compile anything anew.
        whole = set(taps[order[0]])
        #: Lengths of the box sums that are computed.
        self.sums = sorted(
            {c.length for c in self.row_cells if c.length in whole and self._pays(c)}
        )
        # What keeps float16 sums in range.
        bits = max(self.sums, default=1) - 1
        self.sum_scale = 2.0 ** -bits.bit_length() if self.split.low_scale > 1 else 1.0

    def _pays(self, cell: Cell) -> bool:
        """Whether a box sum takes fewer products than the single rows."""
        split = self.split
        single = cell.length * len(split.pairs(split.row))
        return cell.length > 1 and len(split.pairs(split.sums)) < single

    # -------------------------------------------------------------- planes

    @property
    def planes(self) -> int:
        """Planes of scratch."""
        return self.split.row + len(self.sums) * self.split.sums

    def plane(self, length: int, part: int) -> int:
        """Plane of a part of the sums of a number of rows."""
        return self.split.row + self.sums.index(length) * self.split.sums + part

    def gap(self, tile_rows: int, tile_columns: int) -> int:
        """Elements of zeros before and after each plane that programs may read."""
        rows = tile_rows + self.reach + 2
        return up(rows * self.pitch + tile_columns + 4 * self.side + 64, 64)

    @functools.cached_property
    def largest_gap(self) -> int:
        """The gap that every tile gets by with."""
        tiles = itertools.chain(*TILES.values())
        return max(self.gap(tile.rows, 2 * tile.columns) for tile in tiles)

    def plane_stride(self, images: int, channels: int) -> int:
        """Elements from one plane to the next."""
        return images * channels * self.image_rows * self.pitch + self.largest_gap

    def scratch(self, images: int, channels: int) -> int:
        """Elements of all planes, with the gaps."""
        return self.planes * self.plane_stride(images, channels) + self.largest_gap

    def tile_rows(self, tile: Tile, images: int) -> tuple[bool, int]:
        """Whether tiles cover all images of a channel as one, and how many it takes.

        Small images share tiles that way; that of an image alone has fewer zeros.
        """
        stacked = images * self.image_rows - self.image_rows + self.height
        together = -(-stacked // tile.rows)
        alone = -(-self.height // tile.rows)
        if together < alone * images:
            return True, together
        return False, alone

    def clocks(self, tile: Tile) -> float:
        """Cycles of a Hopper multiprocessor, by the counts of its busiest pipe.

        Either the tensor cores, or what goes through shared memory: into it once, and
        out of it for every 64 rows of the accumulator.
        """
        stacked, rows = self.tile_rows(tile, self.images)
        tiles = rows * (1 if stacked else self.images) * -(-self.width // tile.columns)
        long, short = max(tile.rows, tile.columns), min(tile.rows, tile.columns)
        high, wide = (short, long) if tile.columns_first else (long, short)
        moved = tile.rows + tile.columns + -(-high // 64) * (64 + wide)
        step = max(high * wide * tile.depth / 2048, moved * tile.depth * 2 / 128)
        each = step * self.steps(tile) * len(self.products) + PROGRAM_CLOCKS
        return self.channels * tiles * each

    def weight_clocks(self, rows: int, lags: int, depth: int) -> float:
        """The same of the gradient to the weights.

        Args:
            rows: Of a tile, eight per term.
            lags: Columns of a tile.
            depth: Blocks of eight elements that a step multiplies.
        """
        tiles = -(-len(self.terms) * VECTOR // rows) * -(-self.lags // lags)
        moved = 2 * (rows + lags) * depth * 2 / 128
        step = max(rows * lags * depth / 2048, moved)
        blocks = self.images * self.image_rows * self.pitch / VECTOR
        return self.channels * tiles * blocks / depth * self.split.row * step

    def pack_clocks(self, summed: bool) -> float:
        """The same of laying out planes, with their box sums or without."""
        elements = self.images * self.channels * self.image_rows * self.pitch
        each = ELEMENT_CLOCKS * self.split.row
        if summed and self.sums:
            each += ROW_CLOCKS * self.split.row * self.sums[-1]
            each += ELEMENT_CLOCKS * self.split.sums * len(self.sums) / 4
        return elements * each

    def chunks(self, tile: Tile) -> list[tuple[slice, slice]]:
        """Images and channels whose planes and weights are in scratch at a time."""
        one = self.planes * self.image_rows * self.pitch * 2
        fit = max(1, SCRATCH_BYTES // one)
        images = min(self.images, fit)
        rows = len(self.row_cells) * self.split.weight
        kernel = rows * VECTOR * self.row_length(tile) * 2
        channels = max(1, min(self.channels, fit // images, SCRATCH_BYTES // kernel))
        return [
            (slice(n, min(n + images, self.images)), slice(c, c + channels))
            for c in range(0, self.channels, channels)
            for n in range(0, self.images, images)
        ]

    # -------------------------------------------------------------- products

    @functools.cached_property
    def products(self) -> list[Product]:
        """What forward adds up: by phase, and small parts first, which loses least."""
        found = []
        split = self.split
        for number, cell in enumerate(self.row_cells):
            summed = cell.length in self.sums
            for i, j in split.pairs(split.sums if summed else split.row):
                row = number * split.weight + j
                phase, offsets = 2, range(cell.start, cell.start + cell.length)
                plane = i
                if summed:
                    phase, offsets = 1 - min(i, 1), range(cell.start, cell.start + 1)
                    plane = self.plane(cell.length, i)
                if split.low_scale == 1:
                    phase = 0
                for offset in offsets:
                    found.append((phase, -i - j, Product(plane, offset, row, phase)))
        found.sort(key=lambda entry: entry[:2])
        return [product for _, _, product in found]

    @property
    def phases(self) -> int:
        """Phases of different scales."""
        return 1 if self.split.low_scale == 1 else 3

    @property
    def scales(self) -> tuple[float, float]:
        """What the sum is multiplied by after the first and the second phase."""
        return 1 / self.split.low_scale, 1 / self.sum_scale

    def steps(self, tile: Tile) -> int:
        """Steps along the columns that a product takes."""
        return -(-(tile.columns + self.left + self.side) // tile.depth)

    def row_length(self, tile: Tile) -> int:
        """Elements of a row of weights, with the zeros around it."""
        return self.steps(tile) * tile.depth + tile.columns

    # -------------------------------------------------------------- gradient to weights

    @functools.cached_property
    def terms(self) -> list[tuple[int, int, int, float]]:
        """Cell, plane, row offset and scale of what the gradient's rows are sums of.

        The adjoint: where forward reads the rows from `start` on, the gradient at a
        row of the input is read from the rows that saw it.
        """
        found = []
        for number, cell in enumerate(self.row_cells):
            if cell.length in self.sums:
                offset = 1 - cell.start - cell.length
                for part in range(self.split.sums):
                    scale = 1 / self.sum_scale
                    if part:
                        scale /= self.split.low_scale
                    plane = self.plane(cell.length, part)
                    found.append((number, plane, offset, scale))
            else:
                for tap in range(cell.start, cell.start + cell.length):
                    for part in range(self.split.row):
                        found.append((number, part, -tap, 1.0))
        return found

    @property
    def lags(self) -> int:
        """Columns of the map that eight columns of the gradient meet."""
        return 2 * self.side + VECTOR
