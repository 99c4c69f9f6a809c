"""The kernels that multiply matrices: the convolution and its gradient to the weights.

See `plan.py` for what is multiplied. Offsets within scratch have 32 bits, those into
maps 64; prefixes are those of `pack.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .casts import INTERPRETED, narrow, widen

# triton takes types from annotations, and no annotation where it is to find out.
# mypy: disable-error-code="valid-type,no-untyped-def"


@triton.jit(
    do_not_specialize=[
        's_image',
        's_channel',
        's_row',
        's_column',
        'n_images',
        'n_groups',
        'n_tiles_y',
        'n_tiles_x',
        'height',
        'width',
        'image_rows',
        'group_rows',
        'pitch_8',
        'row_length_8',
        'rows_stride_8',
    ],
    do_not_specialize_on_alignment=['p_out', 'p_bias'],
)
def convolve(
    p_planes,
    p_weights,
    p_steps,
    p_bias,
    p_out,
    s_image: tl.int64,
    s_channel: tl.int64,
    s_row: tl.int64,
    s_column: tl.int64,
    n_images: tl.int32,
    n_groups: tl.int32,
    n_tiles_y: tl.int32,
    n_tiles_x: tl.int32,
    height: tl.int32,
    width: tl.int32,
    image_rows: tl.int32,
    group_rows: tl.int32,
    pitch_8: tl.int32,
    row_length_8: tl.int32,
    rows_stride_8: tl.int32,
    scale_0,
    scale_1,
    CONTIGUOUS: tl.constexpr,
    PHASES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    COLUMNS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Add up products of planes and Toeplitz matrices for a tile of the output.

    `p_steps` has the end of each phase in its first four numbers, then for each step
    the place of its part of the planes and that of its weights, in units of eight,
    and two zeros. Rows of a tile belong to a group of images, one below the other.
    `p_planes` is as many elements before the first plane as a kernel reaches left.
    """
    pid = tl.program_id(0)
    tile_x = pid % n_tiles_x
    pid = pid // n_tiles_x
    tile_y = pid % n_tiles_y
    pid = pid // n_tiles_y
    group = pid % n_groups
    channel = pid // n_groups

    y = tl.arange(0, ROWS)
    x = tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    first_row = tile_y * ROWS
    first_column = tile_x * COLUMNS
    pitch = pitch_8 * 8
    base = (channel * n_groups + group) * group_rows + first_row
    p_tile = p_planes + (base * pitch + first_column)
    p_row = p_weights + channel * rows_stride_8 * 8 + (COLUMNS - 8)
    # A load takes a pointer for all threads and a 32-bit offset for each: 64-bit
    # pointers would take twice the registers.
    tile_offset = y[:, None] * pitch + k[None, :]
    row_offset = (x % 8 * row_length_8 * 8 - x // 8 * 8)[:, None] + k[None, :]

    if COLUMNS_FIRST:
        total = tl.zeros((COLUMNS, ROWS), tl.float32)
    else:
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
    start = 0
    p_step = p_steps + 4
    step = tl.load(p_step)
    place = tl.load(p_step + 1)
    for phase in tl.static_range(PHASES):
        end = tl.load(p_steps + phase)
        for _ in tl.range(start, end, num_stages=STAGES):
            # Through the first-level cache, as the next steps read most of it again.
            rows = tl.load(p_tile + step * 8 + tile_offset, cache_modifier='.ca')
            taps = tl.load(p_row + place * 8 + row_offset, cache_modifier='.ca')
            # The next step's numbers, so that nothing waits for them.
            p_step += 2
            step = tl.load(p_step)
            place = tl.load(p_step + 1)
            if INTERPRETED:
                rows = widen(rows)
                taps = widen(taps)
            if COLUMNS_FIRST:
                total = tl.dot(taps, tl.trans(rows), total)
            else:
                total = tl.dot(rows, tl.trans(taps), total)
        start = end
        if PHASES > 1:
            if phase == 0:
                total *= scale_0
            elif phase == 1:
                total *= scale_1
    if COLUMNS_FIRST:
        total = tl.trans(total)
    if p_bias is not None:
        total += widen(tl.load(p_bias + channel))

    if CONTIGUOUS == 1:
        s_row = 1
    elif CONTIGUOUS == 2:
        s_column = 1
    row = first_row + y
    image = row // image_rows
    image_row = row - image * image_rows
    inside = (image_row < height) & (row < group_rows)
    # Relative to the tile's first row, so that 32 bits are enough.
    first_image = first_row // image_rows
    first_row -= first_image * image_rows
    down = (image - first_image) * s_image + (image_row - first_row) * s_row
    across = x * s_column
    first_image += group * (n_images // n_groups)
    p_tile = p_out + first_image * s_image + channel * s_channel
    p_tile += first_row * s_row + first_column * s_column
    tl.store(
        p_tile + (down.to(tl.int32)[:, None] + across.to(tl.int32)[None, :]),
        narrow(total, p_out.dtype.element_ty),
        mask=inside[:, None] & (first_column + x < width)[None, :],
    )


@triton.jit(
    do_not_specialize=[
        'n_channels',
        'n_row_tiles',
        'n_lag_tiles',
        'n_blocks',
        'split_blocks',
        'pitch_8',
        'grad_stride_8',
        'x_stride_8',
    ]
)
def correlate(
    p_grad,
    p_x,
    p_terms,
    p_partial,
    n_channels: tl.int32,
    n_row_tiles: tl.int32,
    n_lag_tiles: tl.int32,
    n_blocks: tl.int32,
    split_blocks: tl.int32,
    pitch_8: tl.int32,
    grad_stride_8: tl.int32,
    x_stride_8: tl.int32,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    LAGS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Add up products of eight columns of the gradient and the columns of x they saw.

    Blocks of eight elements of the whole of a channel's planes, zeros and all, are the
    axis that is summed over. Rows of the result: eight per term (a plane and a row
    offset in `p_terms`), one for each element of a block. Columns: those of x, from the
    first that the block's first element saw. Programs split the blocks; each has a
    part of the sum for itself, written transposed.
    """
    pid = tl.program_id(0)
    lag_tile = pid % n_lag_tiles
    pid = pid // n_lag_tiles
    row_tile = pid % n_row_tiles
    pid = pid // n_row_tiles
    channel = pid % n_channels
    split = pid // n_channels

    k = tl.arange(0, DEPTH)
    row = tl.arange(0, ROWS)
    lag = tl.arange(0, LAGS)
    p_term = p_terms + 2 * (row_tile * (ROWS // 8) + row // 8)
    moved = tl.load(p_term) * grad_stride_8 + tl.load(p_term + 1) * pitch_8
    moved = moved[None, :] * 8 + row[None, :] % 8
    moved = tl.max_contiguous(tl.multiple_of(moved, [1, 8]), [1, 8])
    grad_offset = moved + k[:, None] * 8
    x_offset = k[:, None] * 8 + lag[None, :]

    first = split * split_blocks
    end = tl.minimum(first + split_blocks, n_blocks)
    total = tl.zeros((LAGS, ROWS), tl.float32)
    for number in tl.static_range(PARTS):
        part = PARTS - 1 - number  # small parts first, which loses least
        p_g = p_grad + (channel * n_blocks + first) * 8
        p_s = p_x + (part * x_stride_8 + channel * n_blocks + first) * 8
        p_s += lag_tile * LAGS
        for block in tl.range(first, end, DEPTH, num_stages=STAGES):
            grad = tl.load(p_g + grad_offset, cache_modifier='.ca')
            seen = tl.load(
                p_s + x_offset,
                mask=(block + k < end)[:, None],
                other=0,
                cache_modifier='.ca',
            )
            if INTERPRETED:
                grad = widen(grad)
                seen = widen(seen)
            total = tl.dot(tl.trans(seen), grad, total)
            p_g += DEPTH * 8
            p_s += DEPTH * 8
    place = (split * n_channels + channel).to(tl.int64) * n_row_tiles + row_tile
    place = place * (n_lag_tiles * LAGS) + lag_tile * LAGS
    to = lag[:, None] * ROWS + row[None, :]
    tl.store(p_partial + place * ROWS + to, total)


@triton.jit(
    do_not_specialize=[
        's_channel',
        's_row',
        's_column',
        'n_channels',
        'n_row_cells',
        'n_column_cells',
        'n_splits',
        'n_taps',
        'n_row_tiles',
        'n_lags',
    ],
)
def add_partial(
    p_partial,
    p_cells,
    p_scales,
    p_out,
    s_channel: tl.int64,
    s_row: tl.int64,
    s_column: tl.int64,
    n_channels: tl.int32,
    n_row_cells: tl.int32,
    n_column_cells: tl.int32,
    n_splits: tl.int32,
    n_taps: tl.int32,
    n_row_tiles: tl.int32,
    n_lags: tl.int32,
    ROWS: tl.constexpr,
    DENSE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Add what `correlate` left, in a fixed order, to the gradient of a row of cells.

    `p_cells` has, for each row cell, the parameter's row and its terms' first and end;
    then for each column cell the parameter's column, its first tap and end. `DENSE`
    where each of these has one tap.
    """
    cell = tl.program_id(0) % n_row_cells
    channel = tl.program_id(0) // n_row_cells
    p_row_cell = p_cells + 3 * cell
    p_columns = p_cells + 3 * n_row_cells
    p_to = p_out + channel * s_channel + tl.load(p_row_cell) * s_row
    element = tl.arange(0, 8)[:, None]
    tap = tl.arange(0, BLOCK)
    inside = tap < n_taps
    sums = tl.zeros((BLOCK,), tl.float32)
    tl.assume(n_splits > 0)
    for term in range(tl.load(p_row_cell + 1), tl.load(p_row_cell + 2)):
        total = tl.zeros((8, BLOCK), tl.float32)
        for split in range(n_splits):
            place = (split * n_channels + channel).to(tl.int64) * n_row_tiles
            place = (place + term // (ROWS // 8)) * n_lags * ROWS + term % (
                ROWS // 8
            ) * 8
            # Of the columns of x, an element saw the first as many columns further on.
            seen = (element + tap[None, :]) * ROWS + element
            total += tl.load(p_partial + place + seen, mask=inside[None, :], other=0)
        sums += tl.sum(total, 0) * tl.load(p_scales + term)
    if DENSE:
        column = tl.load(p_columns + 3 * tap, mask=inside, other=0)
        tl.store(p_to + column * s_column, sums, mask=inside)
    else:
        for number in range(n_column_cells):
            p_column = p_columns + 3 * number
            first = tl.load(p_column + 1)
            covered = (tap >= first) & (tap < tl.load(p_column + 2))
            parameter = tl.sum(tl.where(covered, sums, 0))
            tl.store(p_to + tl.load(p_column) * s_column, parameter)
