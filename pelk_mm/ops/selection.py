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

from . import cpu, fft

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
    if problem.cells is None:
        across = min(problem.kernel[1], width + problem.lanes - 1)
        rows = problem.met(0)
    else:
        across, taps = problem.cells, problem.cells**2
        rows = min(problem.cells + 1, height)
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
    'shared': _direct,
    'shared_weight': _direct,
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
        'direct': (16400, 25.7, 0.309, 0.203, 0.295),
        'direct_weight': (19800, 12.7, 0.307, 1.17, 7.15),
        'shared': (17800, 5.75, 0.201, 2.66, 3.32),
        'shared_weight': (22100, 2.51, 0.459, 0.334, 8.99),
        'pixels': (25800, 0, 0.11, 0.0188, 0.636),
        'pixels_weight': (27900, 3.51, 0.0152, 0.0246, 3.14),
        'blocks': (24500, 0, 0.0472, 0.0181, 0.852, 0.312),
        'blocks_weight': (26100, 3.05, 0, 0.0238, 3.38, 0.433),
        'fft': (21300, 59, 16.2, 0),
        'fft_weight': (26400, 0, 16.2, 0),
        'fft_both': (35000, 0, 26.9, 0),
        'column_fft': (21500, 272, 0.732, 1.09, 1.38, 31.7, 1.32),
        'column_fft_weight': (21400, 409, 0.361, 1.6, 1.05, 37.2, 2.83),
        'column_fft_both': (30100, 435, 1.07, 2.41, 1, 50, 3.79),
        'transpose': (19800, 0, 0.519),
    },
    'avx2': {
        'direct': (16500, 25.2, 0.204, 0.185, 0.318),
        'direct_weight': (19600, 14.3, 0.269, 0.145, 6.8),
        'shared': (18300, 15, 0.0991, 1.86, 1.89),
        'shared_weight': (22400, 6.84, 0.297, 0, 8.48),
        'pixels': (24800, 0.15, 0.139, 0.0349, 1.24),
        'pixels_weight': (25400, 11.3, 0, 0.0407, 10.4),
        'blocks': (24200, 0.41, 0.207, 0.0235, 1.28, 0.345),
        'blocks_weight': (24600, 11.9, 0, 0.0388, 10.6, 0.114),
        'fft': (21200, 136, 8.94, 0),
        'fft_weight': (22500, 141, 9.08, 0),
        'fft_both': (31100, 216, 14.7, 0),
        'column_fft': (19800, 232, 0, 0.643, 0.62, 18.9, 1.52),
        'column_fft_weight': (21500, 258, 0, 1.05, 0.539, 19.5, 2.24),
        'column_fft_both': (28900, 323, 0, 1.46, 0.535, 29.1, 3.2),
        'transpose': (19200, 0, 0.582),
    },
    'portable': {
        'direct': (17400, 23.2, 0.225, 0.417, 0.926),
        'direct_weight': (19900, 11.3, 0.227, 0.101, 7.69),
        'shared': (19900, 20, 0.102, 2.24, 0),
        'shared_weight': (21800, 0, 0.239, 0, 8.71),
        'pixels': (25700, 2, 0.261, 0.0821, 2.02),
        'pixels_weight': (27200, 11.8, 0, 0.087, 7.92),
        'blocks': (25100, 2.12, 0.369, 0.0629, 2.6, 0.589),
        'blocks_weight': (26400, 12, 0, 0.0821, 8.57, 0.316),
        'fft': (21100, 126, 6.48, 0.171),
        'fft_weight': (23000, 164, 5.88, 0.222),
        'fft_both': (31200, 230, 10.2, 0.301),
        'column_fft': (21500, 150, 0.0151, 0.789, 0.54, 19.1, 1.36),
        'column_fft_weight': (21600, 218, 0, 1.22, 0.54, 18.8, 2.14),
        'column_fft_both': (28600, 252, 0, 1.93, 0.526, 30, 3.33),
        'transpose': (18200, 0, 0.803),
    },
    'torch': {
        'torch_fft': (84700, 281, 0.199),
        'torch_fft_weight': (77500, 261, 0.195),
        'channels_last': (53000, 18.5, 1.99, 0.0262, 0.0143),
        'channels_last_weight': (81700, 236, 0, 0.358, 1.24),
        'nchw': (68800, 0, 0.437, 0.0249, 0.905),
        'nchw_weight': (81800, 0, 0, 0.562, 1.22),
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
        direct = 'direct' if cells is None else 'shared'
        pixels = 'pixels' if channels_last else 'blocks'
        return {
            'direct': _expected(instruction_set, direct + suffix, problem),
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
