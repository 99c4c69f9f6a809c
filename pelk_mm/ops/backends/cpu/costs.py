"""How long the compiled kernels take: a measured cost model, not a timing.

Timings differ from run to run, and with them the choice and the last bits of results.
"""

import math
from collections.abc import Callable, Sequence

from ...problem import Problem
from ..base import linear_cost
from . import library

# What a plane takes, of which a linear combination is its expected time. `lanes` is the
# number of floats of a vector.


def _direct(problem: Problem, lanes: int) -> tuple[float, ...]:
    height, width = problem.size
    rows, cols = problem.kernel
    vectors = height * math.ceil(width / lanes)
    products = vectors * problem.valid_taps(0) * min(cols, width + lanes - 1)
    return height, products, vectors * problem.valid_taps(0), rows * cols


def _channel_padding(problem: Problem, lanes: int) -> float:
    """Channels padded to whole vectors, over channels."""
    channels = max(1, problem.shape[1])
    return math.ceil(channels / lanes) * lanes / channels


def _pixels(problem: Problem, lanes: int) -> tuple[float, ...]:
    full = _channel_padding(problem, lanes)
    rows, cols = problem.kernel
    groups = math.ceil(cols / 5)
    return (
        full * problem.size[0] * groups,
        full * problem.pixels * groups,
        full * problem.products,
        full * rows * cols / problem.batch,
    )


def _blocks(problem: Problem, lanes: int) -> tuple[float, ...]:
    return *_pixels(problem, lanes), _channel_padding(problem, lanes) * problem.pixels


def _transpose(problem: Problem, lanes: int) -> tuple[float, ...]:
    return 1, problem.pixels


def _panels(columns: int, lanes: int) -> int:
    """Vectors of pairs of columns."""
    return math.ceil((columns + 1) // 2 / lanes)


def _fft(problem: Problem, lanes: int) -> tuple[float, ...]:
    batch = problem.batch
    down, along = problem.transform_lengths

    def points(width: int) -> int:
        """Vectors of points, down and along, of a plane that many columns wide."""
        return _panels(width, lanes) * down + math.ceil(down / 2 / lanes) * along

    total = 2 * points(problem.size[1]) + points(problem.kernel[1]) / batch
    return 1 + 1 / batch, total, total * math.log2(down * along)


def _column_fft(problem: Problem, lanes: int) -> tuple[float, ...]:
    batch = problem.batch
    width, (rows, cols) = problem.size[1], problem.kernel
    cells, levels = cols, 0.0
    if problem.grid is not None:
        cells, levels = len(problem.grid), math.log2(cols)
    down, _ = problem.transform_lengths
    points = (2 * _panels(width, lanes) + _panels(cells, lanes) / batch) * down
    vectors = _panels(width, lanes) * down
    halo = cols / 2 / lanes * down
    return (
        1 + 1 / batch,
        points * math.log2(down),
        vectors * cells,
        (vectors + halo) * levels,
        vectors,
        (rows * cells + down) / batch,
    )


#: Of each cost, what it is a linear combination of.
TERMS: dict[str, Callable[[Problem, int], tuple[float, ...]]] = {
    'direct': _direct,
    'direct_weight': _direct,
    'pixels': _pixels,
    'pixels_weight': _pixels,
    'blocks': _blocks,  # the same on planes
    'blocks_weight': _blocks,
    'fft': _fft,
    'fft_weight': _fft,
    'fft_both': _fft,
    'column_fft': _column_fft,
    'column_fft_weight': _column_fft,
    'column_fft_both': _column_fft,
    'transpose': _transpose,
}

#: Nanoseconds by instruction set, as `benchmarks/selection.py` fits them: of a call,
#: then of each term of a plane on one thread. Only their ratios matter.
COSTS: dict[str, dict[str, tuple[float, ...]]] = {
    'avx512': {
        'direct': (10400, 25.4, 0.313, 0.235, 0.208),
        'direct_weight': (15000, 12.5, 0.305, 1.34, 6.84),
        'pixels': (15000, 0, 0.11, 0.0192, 0.19),
        'pixels_weight': (21900, 2.21, 0.0652, 0.025, 3.22),
        'blocks': (12300, 0, 0.0484, 0.0182, 0.383, 0.294),
        'blocks_weight': (18700, 2.48, 0, 0.0245, 3.43, 0.463),
        'fft': (13100, 169, 8.36, 0.134),
        'fft_weight': (17800, 188, 7.07, 0.215),
        'fft_both': (22600, 302, 12.3, 0.335),
        'column_fft': (13700, 217, 0.181, 1.03, 1.37, 22.7, 0.891),
        'column_fft_weight': (16100, 338, 0.188, 1.61, 1.19, 22.3, 2.4),
        'column_fft_both': (20700, 404, 0.398, 2.11, 1.16, 32.8, 2.82),
        'transpose': (18600, 0, 0.467),
    },
    'avx2': {
        'direct': (10400, 24, 0.206, 0.211, 0.272),
        'direct_weight': (14400, 14.2, 0.272, 0.169, 6.66),
        'pixels': (14300, 0, 0.174, 0.035, 0.609),
        'pixels_weight': (19000, 10.9, 0, 0.0442, 9.92),
        'blocks': (12100, 0, 0.235, 0.0243, 0.751, 0.297),
        'blocks_weight': (16800, 11.8, 0, 0.0406, 10.3, 0.129),
        'fft': (13800, 127, 5.9, 0),
        'fft_weight': (17600, 146, 5.12, 0.0733),
        'fft_both': (22200, 258, 8.93, 0.0655),
        'column_fft': (13000, 190, 0, 0.672, 0.504, 14.6, 1.1),
        'column_fft_weight': (17100, 192, 0, 1.11, 0.502, 15.8, 1.68),
        'column_fft_both': (21300, 258, 0, 1.54, 0.474, 22.1, 2.17),
        'transpose': (18300, 0, 0.499),
    },
    'portable': {
        'direct': (10600, 22.3, 0.225, 0.478, 0.886),
        'direct_weight': (14100, 11.5, 0.231, 0.147, 7.47),
        'pixels': (14600, 1.15, 0.32, 0.0826, 1.6),
        'pixels_weight': (19900, 11.7, 0.0126, 0.09, 8.05),
        'blocks': (11900, 2.76, 0.342, 0.0639, 1.98, 0.654),
        'blocks_weight': (18500, 11.5, 0, 0.0839, 8.23, 0.381),
        'fft': (13500, 188, 2.88, 0.227),
        'fft_weight': (16800, 199, 2.57, 0.258),
        'fft_both': (20700, 342, 4.99, 0.349),
        'column_fft': (13100, 184, 0.325, 0.795, 0.444, 9.31, 0.565),
        'column_fft_weight': (16400, 235, 0.438, 1.2, 0.45, 7.22, 1.33),
        'column_fft_both': (20100, 298, 0.653, 1.92, 0.363, 13, 2.06),
        'transpose': (17400, 0, 0.687),
    },
}


#: Nanoseconds of expanding a sharing grid's parameters, or of summing a dense gradient
#: over its cells: of a call, then of each tap of a channel.
EXPANSION = (80_000, 1.2)


def expected(
    problem: Problem, names: Sequence[str], transposes: int, expansions: int
) -> float:
    """Expected time of a call, in nanoseconds on one thread.

    Args:
        problem: The problem.
        names: Costs that add up to that of the passes on planes.
        transposes: Changes of layout of maps that are channels_last.
        expansions: How often a sharing grid's kernels are made dense or summed.
    """
    version = library.require_instruction_set()
    lanes, costs = library.LANES[version], COSTS[version]

    def time(name: str) -> float:
        return linear_cost(problem, costs[name], TERMS[name](problem, lanes))

    total = sum(map(time, names))
    if transposes and problem.channels_last:
        total += transposes * time('transpose')
    if expansions and problem.grid is not None:
        call, per_tap = EXPANSION
        taps = problem.shape[1] * problem.kernel[0] * problem.kernel[1]
        total += expansions * (call + per_tap * taps)
    return total
