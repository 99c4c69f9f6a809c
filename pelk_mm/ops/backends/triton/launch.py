"""What starts the kernels: scratch, tables and grids."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from . import availability, variants
from .plan import VECTOR, Plan, Tile, up


@functools.lru_cache(maxsize=1024)
def _table(numbers: tuple[float, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Numbers on a device, copied there once."""
    return torch.tensor(numbers, dtype=dtype, device=device)


def _flat(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(number for row in rows for number in row)


def _contiguous_axis(strides: Sequence[int]) -> int:
    """Of channels, rows and columns the axis of stride 1, else 3."""
    _, *axes = strides
    return 2 if axes[2] == 1 else axes.index(1) if 1 in axes else 3


def oriented(plan: Plan, maps: Tensor) -> Tensor:
    """Maps with the plan's rows as rows."""
    return maps.transpose(2, 3) if plan.transposed else maps


class Planes:
    """Planes of some images and channels of a map, in scratch.

    Args:
        plan: What they are made for.
        maps: The map's part, rows as the plan has them.
        summed: Whether box sums are wanted.
        before: Elements before a plane's first to the one that is aligned.
    """

    def __init__(self, plan: Plan, maps: Tensor, summed: bool, before: int) -> None:
        pack, _ = availability.modules()
        self.plan = plan
        self.images, self.channels = maps.shape[:2]
        self.stride = plan.plane_stride(self.images, self.channels)
        self.gap = plan.largest_gap
        kept = plan.planes if summed else plan.split.row
        self.buffer = maps.new_empty(
            kept * self.stride + self.gap + VECTOR, dtype=plan.split.operand
        )
        #: Of the first plane's first element.
        self.origin = self.gap + before % VECTOR
        elements = self.stride - self.gap
        # The gaps are zeros.
        gaps = self.buffer[: kept * self.stride].view(kept, self.stride)
        gaps[:, : self.origin].zero_()
        gaps[:, self.origin + elements :].zero_()
        self.buffer[kept * self.stride :].zero_()
        contiguous = _contiguous_axis(maps.stride())
        sizes = [self.channels, plan.height, plan.width]
        strides = list(maps.stride())
        others = [s for axis, s in enumerate(strides, -1) if axis != contiguous]
        aligned = contiguous < 3 and all(
            number % VECTOR == 0
            for number in (before, sizes[contiguous], maps.data_ptr() // 2, *others)
        )
        constants = variants.lay_out_rows(plan, contiguous, aligned)
        programs = self.images
        for size, edge in (
            (self.channels, 'CHANNELS'),
            (plan.image_rows, 'ROWS'),
            (plan.pitch, 'COLUMNS'),
        ):
            programs *= -(-size // constants[edge])
        if aligned:
            strides = [stride // VECTOR for stride in strides]
            sizes[contiguous] //= VECTOR
        availability.launch(
            pack.lay_out_rows,
            (programs,),
            maps.device.type,
            maps,
            self.buffer[self.origin :],
            *strides,
            self.images,
            *sizes,
            plan.image_rows,
            plan.pitch // VECTOR,
            self.stride // VECTOR,
            **constants,
        )
        if not (summed and plan.sums):
            return
        # From the rows before the first image on, whose sums reach into it.
        first = up(self.origin - plan.reach * plan.pitch, VECTOR) - VECTOR
        count = up(self.origin + elements - first, VECTOR)
        availability.launch(
            pack.add_rows,
            (-(-count // variants.SUM_BLOCK),),
            maps.device.type,
            self.buffer[first:],
            self.buffer[plan.split.row * self.stride + first :],
            count // VECTOR,
            plan.pitch // VECTOR,
            self.stride // VECTOR,
            plan.sum_scale,
            plan.split.low_scale,
            **variants.add_rows(plan),
        )

    def at(self, position: int) -> Tensor:
        """The scratch from an element on, relative to the first plane's first."""
        return self.buffer[self.origin + position :]


def lay_out_weights(plan: Plan, weight: Tensor, tile: Tile) -> Tensor:
    """Rows of taps as `convolve` reads them."""
    pack, _ = availability.modules()
    channels = weight.shape[0]
    weight = weight.transpose(1, 2) if plan.transposed else weight
    rows, length = len(plan.row_cells), plan.row_length(tile)
    parts = plan.split.weight
    to = weight.new_empty(
        channels * rows * parts * VECTOR * length, dtype=plan.split.operand
    )
    indices = [cell.parameter for cell in plan.row_cells]
    for cell in plan.column_cells:
        indices += [cell.parameter] * cell.length
    availability.launch(
        pack.lay_out_weights,
        (channels * rows, -(-length // variants.WEIGHT_BLOCK)),
        weight.device.type,
        weight,
        to,
        _table(tuple(indices), torch.int32, str(weight.device)),
        *weight.stride(),
        rows,
        2 * plan.side + 1,
        length,
        tile.columns - VECTOR + plan.left - plan.side,
        **variants.lay_out_weights(plan),
    )
    return to


@functools.lru_cache(maxsize=256)
def _steps(plan: Plan, tile: Tile, plane_stride: int) -> tuple[int, ...]:
    """The table that `convolve` walks along."""
    steps = plan.steps(tile)
    ends: list[int] = [0, 0, 0, 0]
    rows: list[tuple[int, int]] = []
    place = plan.row_length(tile)  # eight copies, in units of eight
    for product in plan.products:
        for step in range(steps):
            column = step * tile.depth // VECTOR
            from_row = product.offset * plan.pitch // VECTOR + column
            from_plane = product.plane * plane_stride // VECTOR
            rows.append((from_plane + from_row, product.row * place + column))
        ends[product.phase] = len(rows)
    for phase in range(1, 4):
        ends[phase] = max(ends[phase], ends[phase - 1])
    return _flat([ends, *rows, (0, 0)])


def convolve(
    plan: Plan,
    tile: Tile,
    planes: Planes,
    rows: Tensor,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    """Write the output's part for which there are planes.

    Args:
        plan: What is computed.
        tile: The variant.
        planes: Planes of the input.
        rows: What `lay_out_weights` made of its channels' weights.
        bias: Bias of its channels.
        out: The part of the output, rows as the plan has them.
    """
    _, products = availability.modules()
    stacked, tiles_y = plan.tile_rows(tile, planes.images)
    groups = 1 if stacked else planes.images
    group_rows = plan.image_rows * (planes.images // groups)
    tiles_x = -(-plan.width // tile.columns)
    availability.launch(
        products.convolve,
        (planes.channels * groups * tiles_y * tiles_x,),
        out.device.type,
        planes.at(-plan.left),
        rows,
        _table(_steps(plan, tile, planes.stride), torch.int32, str(out.device)),
        bias,
        out,
        *out.stride(),
        planes.images,
        groups,
        tiles_y,
        tiles_x,
        plan.height,
        plan.width,
        plan.image_rows,
        group_rows,
        plan.pitch // VECTOR,
        plan.row_length(tile) // VECTOR,
        len(plan.row_cells) * plan.split.weight * plan.row_length(tile),
        *plan.scales,
        **variants.convolve(plan, tile, _contiguous_axis(out.stride())),
    )


def weight_gradient(plan: Plan, grad: Planes, x: Planes, to: Tensor) -> None:
    """Write the gradient of a part of the channels, summed over a part of the images.

    Args:
        plan: What is computed.
        grad: Planes of the gradient to the output, with box sums, laid out as for the
            gradient to the input.
        x: Planes of the input, in which the element `side` left of it is aligned.
        to: Zeros of shape (C, ., .), float32, rows as the plan has them.
    """
    pack, products = availability.modules()
    channels, device = grad.channels, str(to.device)
    terms = plan.terms
    term_rows = variants.term_rows(plan)
    row_tiles = -(-len(terms) * VECTOR // term_rows)
    lag_tiles = -(-plan.lags // variants.LAGS)
    blocks = plan.image_rows * plan.pitch // VECTOR * grad.images
    split = min(variants.SPLIT_BLOCKS, up(blocks, variants.DEPTH))
    splits = -(-blocks // split)
    n_rows, n_lags = row_tiles * term_rows, lag_tiles * variants.LAGS
    partial = to.new_empty(splits * channels * n_rows * n_lags)
    padded = [(term[1], term[2]) for term in terms]
    padded += [(0, 0)] * (n_rows // VECTOR - len(terms))
    availability.launch(
        products.correlate,
        (splits * channels * row_tiles * lag_tiles,),
        to.device.type,
        grad.at(0),
        x.at(-plan.side),
        _table(_flat(padded), torch.int32, device),
        partial,
        channels,
        row_tiles,
        lag_tiles,
        blocks,
        split,
        plan.pitch // VECTOR,
        grad.stride // VECTOR,
        x.stride // VECTOR,
        **variants.correlate(plan),
    )
    cells = []
    for number, cell in enumerate(plan.row_cells):
        own = [i for i, term in enumerate(terms) if term[0] == number]
        cells.append((cell.parameter, own[0], own[-1] + 1))
    for cell in plan.column_cells:
        start = cell.start + plan.side
        cells.append((cell.parameter, start, start + cell.length))
    availability.launch(
        products.add_partial,
        (channels * len(plan.row_cells),),
        to.device.type,
        partial,
        _table(_flat(cells), torch.int32, device),
        _table(tuple(term[3] for term in terms), torch.float32, device),
        to,
        *to.stride(),
        channels,
        len(plan.row_cells),
        len(plan.column_cells),
        splits,
        2 * plan.side + 1,
        row_tiles,
        n_lags,
        **variants.add_partial(plan),
    )
