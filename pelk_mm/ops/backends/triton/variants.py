"""Constants that kernels are compiled with: the same where they run and are counted.

None of them is a size of a map, and but for the cells of a sharing grid none is one of
a kernel, so that a handful of variants serves everything.
"""

import itertools
from typing import Any

from .plan import VECTOR, Plan, Tile

#: Channels, rows and columns that a program of `lay_out_rows` copies, by the axis that
#: is contiguous in the map: of channels, rows and columns, or none.
BOXES = {0: (32, 1, 32), 1: (1, 64, 32), 2: (1, 8, 128), 3: (1, 8, 128)}
#: Elements that a program of `add_rows` sums.
SUM_BLOCK = 2048
#: Elements of a row that a program of `lay_out_weights` writes.
WEIGHT_BLOCK = 128
#: Tile of `correlate`: columns (lags) and blocks of a step.
LAGS, DEPTH = 64, 64
#: Most blocks of eight elements that a program of `correlate` sums: bounds the error of
#: its running sum, and gives large maps enough programs.
SPLIT_BLOCKS = 4096


def lay_out_rows(plan: Plan, contiguous: int, aligned: bool) -> dict[str, Any]:
    """Constants for maps of some layout."""
    channels, rows, columns = BOXES[contiguous]
    return {
        'CONTIGUOUS': contiguous,
        'ALIGNED': aligned,
        'PARTS': plan.split.row,
        'CHANNELS': channels,
        'ROWS': rows,
        'COLUMNS': columns,
        'num_warps': 4,
    }


def add_rows(plan: Plan) -> dict[str, Any]:
    """Constants for a dtype and a sharing grid."""
    ends = [0, *plan.sums]
    return {
        'MORE_ROWS': tuple(b - a for a, b in itertools.pairwise(ends)),
        'SCALED': plan.split.low_scale != 1,
        'ROW_PARTS': plan.split.row,
        'PARTS': plan.split.sums,
        'BLOCK': SUM_BLOCK,
        'num_warps': 8,
    }


def lay_out_weights(plan: Plan) -> dict[str, Any]:
    """Constants for a dtype."""
    return {'PARTS': plan.split.weight, 'BLOCK': WEIGHT_BLOCK, 'num_warps': 4}


def convolve(plan: Plan, tile: Tile, contiguous: int) -> dict[str, Any]:
    """Constants for a tile, a dtype and the layout of the output."""
    return {
        'CONTIGUOUS': contiguous,
        'PHASES': plan.phases,
        'ROWS': tile.rows,
        'COLUMNS': tile.columns,
        'DEPTH': tile.depth,
        'COLUMNS_FIRST': tile.columns_first,
        'STAGES': tile.stages,
        'num_warps': tile.warps,
    }


def term_rows(plan: Plan) -> int:
    """Rows of a tile of `correlate`, eight per term: what moves least to the cores."""
    rows = len(plan.terms) * VECTOR
    return min((256, 128, 64), key=lambda size: -(-rows // size) * (size + LAGS))


def correlate(plan: Plan) -> dict[str, Any]:
    """Constants for a dtype."""
    return {
        'PARTS': plan.split.row,
        'ROWS': term_rows(plan),
        'LAGS': LAGS,
        'DEPTH': DEPTH,
        'STAGES': 2,
        'num_warps': 4,
    }


def add_partial(plan: Plan) -> dict[str, Any]:
    """Constants for kernels of at most a number of taps, dense or shared."""
    taps = 2 * plan.side + 1
    return {
        'ROWS': term_rows(plan),
        'DENSE': len(plan.column_cells) == taps,
        'BLOCK': max(16, 1 << (taps - 1).bit_length()),
        'num_warps': 4,
    }
