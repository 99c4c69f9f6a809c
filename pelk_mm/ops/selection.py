"""Which backend a depthwise convolution on the CPU runs on.

A measured cost model, not a timing: timings differ from run to run, and with them the
choice and the last bits of the result.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import fft
from .backends.cpu import library as cpu

FOURIER = ('fft', 'column_fft')  # compiled, both gradients at once
COMPILED = ('direct', 'pixels', *FOURIER)
BACKENDS = (*COMPILED, 'torch_fft', 'channels_last', 'nchw')
#: What a call computes, and of each of its passes the suffix of its costs' names.
PASSES = {
    'forward': ('',),
    'input': ('',),
    'weight': ('_weight',),
    'both': ('', '_weight'),
}
ENVIRONMENT_VARIABLE = 'PELK_MM_CONV'


def check(backend: str | None) -> None:
    """Refuse a backend that does not exist or was not built.

    Args:
        backend: A name out of `BACKENDS`, or None.

    Raises:
        ValueError: The name is unknown, or the compiled kernels are missing.
    """
    if backend is None:
        return
    if backend not in BACKENDS:
        raise ValueError(
            f'there is no convolution backend {backend!r}; choose one of '
            f'{list(BACKENDS)} or None for the expected fastest'
        )
    if backend in COMPILED and cpu.instruction_set() is None:
        raise ValueError(
            f'the backend {backend!r} needs the compiled kernels, which were not built '
            f'or are turned off by {cpu.ENVIRONMENT_VARIABLE}; use one of '
            f'{list(BACKENDS[len(COMPILED) :])}'
        )


def choose(
    backend: str | None,
    passes: str,
    x_shape: Sequence[int],
    kernel: tuple[int, int],
    sharing_grid: Sequence[int] | None = None,
    channels_last: bool = False,
) -> tuple[str, ...]:
    """Choose the backends of a call.

    Args:
        backend: A name out of `BACKENDS` to insist on, or None.
        passes: What the call computes, a key of `PASSES`.
        x_shape: Shape (N, C, H, W) of the input.
        kernel: Size (kh, kw) of the kernels, no more than the map can meet.
        sharing_grid: Cell sizes of peripheral kernels; None for dense ones.
        channels_last: Whether the maps are in that layout.

    Returns:
        Of each pass the backend asked for by the argument, else by `PELK_MM_CONV`, else
        the ones of the least expected time.

    Raises:
        ValueError: `PELK_MM_CONV` names a backend that does not exist here.
    """
    if backend is None:
        backend = os.environ.get(ENVIRONMENT_VARIABLE) or None
        try:
            check(backend)
        except ValueError as error:
            raise ValueError(
                f'{ENVIRONMENT_VARIABLE}={backend}: {error}, or unset the variable'
            ) from None
    if backend is not None:
        return (backend,) * len(PASSES[passes])
    cells = None if sharing_grid is None else len(sharing_grid)
    return _cheapest(
        passes, tuple(x_shape), kernel, cells, channels_last, cpu.instruction_set()
    )


class Problem(NamedTuple):
    """What the expected time of a pass depends on.

    Attributes:
        shape: Shape (N, C, H, W) of the input.
        kernel: Size (kh, kw) of the kernels.
        cells: Parameters of a peripheral kernel along an axis; None for dense ones.
        lanes: Floats of a vector.
    """

    shape: tuple[int, ...]
    kernel: tuple[int, int]
    cells: int | None
    lanes: int

    @property
    def planes(self) -> int:
        """Planes of the input, at least one."""
        return max(1, self.shape[0] * self.shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a plane, at least one."""
        return max(1, self.shape[2]), max(1, self.shape[3])

    def met(self, axis: int) -> float:
        """Taps that meet the map, on average over its pixels along an axis."""
        size = self.size[axis]
        radius = min(self.kernel[axis] // 2, size - 1)
        return 2 * radius + 1 - radius * (radius + 1) / size

    @property
    def pixels(self) -> int:
        """Pixels of a plane."""
        return self.size[0] * self.size[1]

    @property
    def filling(self) -> float:
        """Lanes of vectors of channels over channels."""
        channels = max(1, self.shape[1])
        return math.ceil(channels / self.lanes) * self.lanes / channels

    @property
    def products(self) -> float:
        """Products of a plane and its dense kernel."""
        return self.pixels * self.met(0) * self.met(1)


# What a plane takes, of which a linear combination is its expected time.


def _direct(problem: Problem) -> tuple[float, ...]:
    height, width = problem.size
    vectors = height * math.ceil(width / problem.lanes)
    taps = problem.kernel[0] * problem.kernel[1]
    across = min(problem.kernel[1], width + problem.lanes - 1)
    rows = problem.met(0)
    return 1 / problem.planes, height, vectors * rows * across, vectors * rows, taps


def _pixels(problem: Problem) -> tuple[float, ...]:
    full = problem.filling
    groups = math.ceil(problem.kernel[1] / 5)
    return (
        1 / problem.planes,
        full * problem.size[0] * groups,
        full * problem.pixels * groups,
        full * problem.products,
        full * problem.kernel[0] * problem.kernel[1] / max(1, problem.shape[0]),
    )


def _blocks(problem: Problem) -> tuple[float, ...]:
    return *_pixels(problem), problem.filling * problem.pixels


def _transpose(problem: Problem) -> tuple[float, ...]:
    return 1 / problem.planes, 1, problem.pixels


def _points(problem: Problem, width: int) -> tuple[int, int]:
    """Vectors of points that a plane `width` wide has down and along."""
    down, along = fft.lengths(problem.shape, problem.kernel)
    panels = math.ceil((width + 1) // 2 / problem.lanes)
    return panels * down, math.ceil(down / 2 / problem.lanes) * along


def _fft(problem: Problem) -> tuple[float, ...]:
    batch = max(1, problem.shape[0])
    plane = sum(_points(problem, problem.size[1]))
    kernel = sum(_points(problem, problem.kernel[1]))
    down, along = fft.lengths(problem.shape, problem.kernel)
    points = 2 * plane + kernel / batch
    return 1 / problem.planes, 1 + 1 / batch, points, points * math.log2(down * along)


def _column_fft(problem: Problem) -> tuple[float, ...]:
    batch = max(1, problem.shape[0])
    width, (taps, cells) = problem.size[1], problem.kernel
    levels = 0.0
    if problem.cells is not None:
        levels = math.log2(cells)
        cells = problem.cells
    down, _ = fft.lengths(problem.shape, problem.kernel)

    def panels(columns: int) -> int:
        return math.ceil((columns + 1) // 2 / problem.lanes)

    points = (2 * panels(width) + panels(cells) / batch) * down
    vectors = panels(width) * down
    halo = problem.kernel[1] / 2 / problem.lanes * down
    return (
        1 / problem.planes,
        1 + 1 / batch,
        points * math.log2(down),
        vectors * cells,
        (vectors + halo) * levels,
        vectors,
        (taps * cells + down) / batch,
    )


def _torch_fft(problem: Problem) -> tuple[float, ...]:
    batch = max(1, problem.shape[0])
    down, along = fft.lengths(problem.shape, problem.kernel)
    points = (2 + 1 / batch) * down * along
    return 1 / problem.planes, 2 + 1 / batch, points * math.log2(down * along)


def _channels_last(problem: Problem) -> tuple[float, ...]:
    # Kernels of these widths fall between two of oneDNN's algorithms.
    slow = problem.products if 10 < problem.kernel[1] < 15 else 0
    return 1 / problem.planes, 1, problem.pixels, problem.products, slow


def _nchw(problem: Problem) -> tuple[float, ...]:
    # Above this width oneDNN's kernel gives way to a plain one.
    plain = problem.products if problem.kernel[1] > 13 else 0
    return 1 / problem.planes, 1, problem.pixels, problem.products - plain, plain


#: Of each cost, what it is a linear combination of.
FEATURES: dict[str, Callable[[Problem], tuple[float, ...]]] = {
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
    'torch_fft': _torch_fft,
    'torch_fft_weight': _torch_fft,
    'channels_last': _channels_last,
    'channels_last_weight': _nchw,
    'nchw': _nchw,
    'nchw_weight': _nchw,
    'transpose': _transpose,
}

# Nanoseconds, as `benchmarks/selection.py` fits them: of a call, then of what a plane
# takes on one thread. Only their ratios matter.
_COSTS: dict[str, dict[str, tuple[float, ...]]] = {
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
    'torch': {
        'torch_fft': (80500, 234, 0.213),
        'torch_fft_weight': (73700, 220, 0.209),
        'channels_last': (51100, 0, 2.07, 0.0267, 0.0152),
        'channels_last_weight': (82200, 186, 0, 0.371, 1.26),
        'nchw': (64700, 0, 0.489, 0.0263, 0.913),
        'nchw_weight': (77700, 0, 0, 0.578, 1.24),
    },
}


def _expected(owner: str, name: str, problem: Problem) -> tuple[float, float]:
    """Expected nanoseconds of a call and, on one thread, of each plane."""
    (call, *costs), (_, *takes) = _COSTS[owner][name], FEATURES[name](problem)
    return call, sum(cost * take for cost, take in zip(costs, takes, strict=True))


def _options(
    passes: str,
    x_shape: tuple[int, ...],
    kernel: tuple[int, int],
    cells: int | None,
    channels_last: bool,
    instruction_set: str | None,
) -> dict[tuple[str, ...], tuple[float, float]]:
    """What is expected of the backends of the passes that can be the fastest."""
    dense = Problem(x_shape, kernel, None, cpu.LANES.get(instruction_set, 1))
    problem = dense._replace(cells=cells)

    def of_pass(suffix: str) -> dict[str, tuple[float, float]]:
        if instruction_set is None:
            return {
                backend: _expected('torch', backend + suffix, dense)
                for backend in BACKENDS[len(COMPILED) :]
            }
        pixels = 'pixels' if channels_last else 'blocks'
        return {
            'direct': _expected(instruction_set, 'direct' + suffix, dense),
            'pixels': _expected(instruction_set, pixels + suffix, dense),
            **{
                backend: _expected(instruction_set, backend + suffix, problem)
                for backend in FOURIER
            },
        }

    options = {}
    for choice in itertools.product(*(of_pass(s).items() for s in PASSES[passes])):
        backends, costs = zip(*choice, strict=True)
        if len(set(backends) & set(FOURIER)) == 1 == len(set(backends)) < len(costs):
            costs = [_expected(instruction_set, f'{backends[0]}_both', problem)]
        if instruction_set is not None and channels_last:
            other = [backend != 'pixels' for backend in backends]
            # Input and result of a pass; both passes read the output's gradient.
            count = 2 * sum(other) - (len(other) == 2 and all(other))
            transpose = _expected(instruction_set, 'transpose', problem)
            costs = [*costs, *[transpose] * count]
        options[backends] = tuple(map(sum, zip(*costs, strict=True)))
    return options


@functools.lru_cache(maxsize=4096)
def _cheapest(
    passes: str,
    x_shape: tuple[int, ...],
    kernel: tuple[int, int],
    cells: int | None,
    channels_last: bool,
    instruction_set: str | None,
) -> tuple[str, ...]:
    planes = Problem(x_shape, kernel, cells, 1).planes
    options = _options(passes, x_shape, kernel, cells, channels_last, instruction_set)
    return min(options, key=lambda name: options[name][0] + planes * options[name][1])
