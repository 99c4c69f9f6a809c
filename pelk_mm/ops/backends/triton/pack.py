"""The kernels that lay maps and weights out for those of `products.py`.

Sizes and strides are no constants of the compiler, which does not specialise on them
either: no new size of a map compiles anything anew. Prefixes: `p_` a pointer, `s_` a
stride, `n_` a number of things.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

# Types of arguments, as triton spells them.
i32 = Any
i64 = Any


@triton.jit
def store_parts(
    p_to: Any, value: Any, mask: Any, stride: Any, low_scale: Any, PARTS: tl.constexpr
) -> None:
    """Write a float32 value as parts whose sum it is, one plane each."""
    rest = value
    for part in tl.static_range(PARTS):
        rounded = rest.to(p_to.dtype.element_ty)
        tl.store(p_to + part * stride, rounded, mask=mask)
        rest = (rest - rounded.to(tl.float32)) * low_scale


@triton.jit(
    do_not_specialize=[
        's_image',
        's_channel',
        's_row',
        's_column',
        'n_images',
        'n_channels',
        'height',
        'width',
        'image_rows',
        'pitch',
        'plane_stride',
    ],
    do_not_specialize_on_alignment=['p_x', 'p_planes'],
)
def lay_out_rows(
    p_x: Any,
    p_planes: Any,
    s_image: i64,
    s_channel: i64,
    s_row: i64,
    s_column: i64,
    n_images: i32,
    n_channels: i32,
    height: i32,
    width: i32,
    image_rows: i32,
    pitch: i32,
    plane_stride: i32,
    CONTIGUOUS: tl.constexpr,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Copy a map of any strides to planes, with zeros after each row and image.

    A program copies a box of channels, rows and columns, wide along the axis that is
    `CONTIGUOUS` in the map: 0 for channels, 1 for rows, 2 for columns, 3 for none.
    """
    pid = tl.program_id(0)
    n_x = (pitch + COLUMNS - 1) // COLUMNS
    n_y = (image_rows + ROWS - 1) // ROWS
    n_c = (n_channels + CHANNELS - 1) // CHANNELS
    x = pid % n_x * COLUMNS + tl.arange(0, COLUMNS)[None, None, :]
    pid = pid // n_x
    y = pid % n_y * ROWS + tl.arange(0, ROWS)[None, :, None]
    pid = pid // n_y
    c = pid % n_c * CHANNELS + tl.arange(0, CHANNELS)[:, None, None]
    n = pid // n_c
    if CONTIGUOUS == 0:
        offset = c + y * s_row + x * s_column
    elif CONTIGUOUS == 1:
        offset = c * s_channel + y + x * s_column
    elif CONTIGUOUS == 2:
        offset = c * s_channel + y * s_row + x
    else:
        offset = c * s_channel + y * s_row + x * s_column
    inside = (c < n_channels) & (y < height) & (x < width)
    value = tl.load(p_x + n * s_image + offset, mask=inside, other=0)
    to = ((c * n_images + n) * image_rows + y) * pitch + x
    mask = (c < n_channels) & (y < image_rows) & (x < pitch)
    store_parts(p_planes + to, value.to(tl.float32), mask, plane_stride, 1.0, PARTS)


@triton.jit(do_not_specialize=['n_elements', 'pitch', 'plane_stride', 'n_sums'])
def add_rows(
    p_planes: Any,
    p_sums: Any,
    p_lengths: Any,
    n_elements: i32,
    pitch: i32,
    plane_stride: i32,
    n_sums: i32,
    scale: Any,
    low_scale: Any,
    ROW_PARTS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Sum 2, 3, ... rows from each on, and keep the sums of some lengths.

    Sums are direct, from the first row on: a running sum over a whole column would
    lose the bits of what is small in it.
    """
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = position < n_elements
    total = tl.zeros((BLOCK,), tl.float32)
    row = 0
    for number in range(n_sums):
        length = tl.load(p_lengths + number)
        for offset in range(row, length):
            at = position + offset * pitch
            for part in tl.static_range(ROW_PARTS):
                value = tl.load(p_planes + part * plane_stride + at, mask=inside)
                total += value.to(tl.float32)
        row = length
        to = p_sums + number * PARTS * plane_stride + position
        store_parts(to, total * scale, inside, plane_stride, low_scale, PARTS)


@triton.jit(
    do_not_specialize=[
        's_channel',
        's_row',
        's_column',
        'n_rows',
        'n_taps',
        'row_length',
        'columns',
    ],
    do_not_specialize_on_alignment=['p_weight'],
)
def lay_out_weights(
    p_weight: Any,
    p_to: Any,
    p_indices: Any,
    s_channel: i64,
    s_row: i64,
    s_column: i64,
    n_rows: i32,
    n_taps: i32,
    row_length: i32,
    columns: i32,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write rows of taps eight times, each a column further right, between zeros.

    A row of a Toeplitz matrix is then an aligned piece of one of the eight. A program
    writes a piece of the eight copies of one row. `p_indices` has the parameter's row
    for each row, then the parameter's column for each tap.
    """
    row = tl.program_id(0) % n_rows
    channel = tl.program_id(0) // n_rows
    copy = tl.arange(0, 8)[:, None]
    position = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    tap = position - copy - (columns - 8)
    inside = (tap >= 0) & (tap < n_taps)
    index = tl.load(p_indices + n_rows + tap, mask=inside, other=0)
    p_row = p_weight + channel * s_channel + tl.load(p_indices + row) * s_row
    value = tl.load(p_row + index * s_column, mask=inside, other=0).to(tl.float32)
    part_stride = 8 * row_length
    to = (channel * n_rows + row) * PARTS * part_stride + copy * row_length + position
    mask = (position < row_length) & (copy < 8)
    store_parts(p_to + to, value, mask, part_stride, 1.0, PARTS)
