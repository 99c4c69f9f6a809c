"""Conversions of numbers that triton's interpreter gets right too.

It multiplies bfloat16 as integers, truncates where GPUs round, and converts slowly.
"""

# triton takes types from annotations, and no annotation where it is to find out.
# mypy: disable-error-code="valid-type,no-untyped-def"

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(
    os.environ.get('TRITON_INTERPRET', '').lower() in ('1', 'true', 'yes', 'on', 'y')
)


@triton.jit
def widen(value):
    """To float32."""
    if INTERPRETED and value.dtype == tl.bfloat16:
        bits = value.to(tl.int16, bitcast=True).to(tl.int32) << 16
        return bits.to(tl.float32, bitcast=True)
    else:  # noqa: RET505 (triton compiles both branches without it)
        return value.to(tl.float32)


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """From float32 to the nearest number of another type."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:  # noqa: RET505
        return value.to(dtype)
