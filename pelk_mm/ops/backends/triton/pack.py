"""The kernels that lay maps and weights out for those of `products.py`.

Sizes and strides are no constants of the compiler, which does not specialise on them
either: no new size of a map compiles anything anew. Prefixes: `p_` a pointer, `s_` a
stride, `n_` a number of things.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .casts import narrow, widen

# triton takes types from annotations, and no annotation where it is to find out.
# mypy: disable-error-code="valid-type,no-untyped-def"


@triton.jit
def store_parts(p_to, value, mask, stride, low_scale, PARTS: tl.constexpr) -> None:
    """Write a float32 value as parts whose sum it is, one plane each."""
    rest = value
    for part in tl.static_range(PARTS):
        p_part = p_to + part * stride
        if part + 1 == PARTS:
            tl.store(p_part, narrow(rest, p_to.dtype.element_ty), mask=mask)
        elif p_to.dtype.element_ty == tl.bfloat16:
            # Rounded by integers, as GPUs convert and keep a float32 slowly.
            bits = (rest.to(tl.int32, bitcast=True) + 0x8000) & -0x10000
            high = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
            tl.store(p_part, high, mask=mask)
            rest = (rest - bits.to(tl.float32, bitcast=True)) * low_scale
        else:
            high = rest.to(p_to.dtype.element_ty)
            tl.store(p_part, high, mask=mask)
            rest = (rest - high.to(tl.float32)) * low_scale


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
        'pitch_8',
        'plane_stride_8',
    ]
)
def lay_out_rows(
    p_x,
    p_planes,
    s_image: tl.int64,
    s_channel: tl.int64,
    s_row: tl.int64,
    s_column: tl.int64,
    n_images: tl.int32,
    n_channels: tl.int32,
    height: tl.int32,
    width: tl.int32,
    image_rows: tl.int32,
    pitch_8: tl.int32,
    plane_stride_8: tl.int32,
    CONTIGUOUS: tl.constexpr,
    ALIGNED: tl.constexpr,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Copy a map of any strides to planes, with zeros after each row and image.

    A program copies a box of channels, rows and columns, wide along the axis that is
    `CONTIGUOUS` in the map: 0 for channels, 1 for rows, 2 for columns, 3 for none.
    `ALIGNED` where its size, all other strides and the addresses are multiples of eight
    elements; then these sizes and strides are in units of eight.
    """
    pid = tl.program_id(0)
    pitch = pitch_8 * 8
    if ALIGNED:
        s_image *= 8
        s_channel *= 8
        s_row *= 8
        s_column *= 8
        if CONTIGUOUS == 0:
            n_channels *= 8
        elif CONTIGUOUS == 1:
            height *= 8
        else:
            width *= 8
    n_x = (pitch + COLUMNS - 1) // COLUMNS
    n_y = (image_rows + ROWS - 1) // ROWS
    n_c = (n_channels + CHANNELS - 1) // CHANNELS
    x0 = pid % n_x * COLUMNS
    pid = pid // n_x
    y0 = pid % n_y * ROWS
    pid = pid // n_y
    c0 = pid % n_c * CHANNELS
    n = pid // n_c
    x = tl.arange(0, COLUMNS)[None, None, :]
    y = tl.arange(0, ROWS)[None, :, None]
    c = tl.arange(0, CHANNELS)[:, None, None]
    if CONTIGUOUS == 0:
        s_channel = 1
    elif CONTIGUOUS == 1:
        s_row = 1
    elif CONTIGUOUS == 2:
        s_column = 1
    # One address of 64 bits for all threads, and offsets of 32 bits within the box.
    p_box = p_x + (n * s_image + c0 * s_channel + y0 * s_row + x0 * s_column)
    offset = (c * s_channel + y * s_row + x * s_column).to(tl.int32)
    inside = (c0 + c < n_channels) & (y0 + y < height) & (x0 + x < width)
    value = tl.load(p_box + offset, mask=inside, other=0)
    p_to = p_planes + ((c0 * n_images + n) * image_rows + y0) * pitch + x0
    to = (c * n_images * image_rows + y) * pitch + x
    mask = (c0 + c < n_channels) & (y0 + y < image_rows) & (x0 + x < pitch)
    stride = plane_stride_8 * 8
    if PARTS == 1:
        tl.store(p_to + to, value, mask=mask)
    else:
        store_parts(p_to + to, widen(value), mask, stride, 1.0, PARTS)


@triton.jit(do_not_specialize=['n_vectors', 'pitch_8', 'plane_stride_8'])
def add_rows(
    p_planes,
    p_sums,
    n_vectors: tl.int32,
    pitch_8: tl.int32,
    plane_stride_8: tl.int32,
    scale,
    low_scale,
    MORE_ROWS: tl.constexpr,
    SCALED: tl.constexpr,
    ROW_PARTS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Sum some rows from each on, keep the sums, then some more rows, and so on.

    Sums are direct, from the first row on: a running sum over a whole column would
    lose the bits of what is small in it. Past the end, rows of the planes after these
    are read in vain. `MORE_ROWS` is the only constant that comes from a sharing grid.
    """
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = position < n_vectors * 8
    stride = plane_stride_8 * 8
    total = tl.zeros((BLOCK,), tl.float32)
    p_row = p_planes + position
    p_sum = p_sums + position
    for number in tl.static_range(len(MORE_ROWS)):
        for _ in tl.static_range(MORE_ROWS[number]):
            for part in tl.static_range(ROW_PARTS):
                value = tl.load(p_row + part * stride)
                total += widen(value)
            p_row += pitch_8 * 8
        if SCALED:
            store_parts(p_sum, total * scale, inside, stride, low_scale, PARTS)
        else:
            store_parts(p_sum, total, inside, stride, 1.0, PARTS)
        p_sum += PARTS * stride


@triton.jit(
    do_not_specialize=[
        's_channel',
        's_row',
        's_column',
        'n_rows',
        'n_taps',
        'row_length',
        'zeros',
    ],
    do_not_specialize_on_alignment=['p_weight'],
)
def lay_out_weights(
    p_weight,
    p_to,
    p_indices,
    s_channel: tl.int64,
    s_row: tl.int64,
    s_column: tl.int64,
    n_rows: tl.int32,
    n_taps: tl.int32,
    row_length: tl.int32,
    zeros: tl.int32,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write rows of taps eight times, each a column further right, between zeros.

    A row of a Toeplitz matrix is then an aligned piece of one of the eight. A program
    writes a piece of the eight copies of one row, the first of which begins with a
    number of `zeros`. `p_indices` has the parameter's row for each row, then the
    parameter's column for each tap.
    """
    row = tl.program_id(0) % n_rows
    channel = tl.program_id(0) // n_rows
    copy = tl.arange(0, 8)[:, None]
    position = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    tap = position - copy - zeros
    inside = (tap >= 0) & (tap < n_taps)
    index = tl.load(p_indices + n_rows + tap, mask=inside, other=0)
    p_row = p_weight + channel * s_channel + tl.load(p_indices + row) * s_row
    value = widen(tl.load(p_row + index * s_column, mask=inside, other=0))
    part_stride = 8 * row_length
    to = (channel * n_rows + row) * PARTS * part_stride + copy * row_length + position
    mask = (position < row_length) & (copy < 8)
    store_parts(p_to + to, value, mask, part_stride, 1.0, PARTS)
