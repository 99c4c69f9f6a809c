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
        'direct': (15300, 24.9, 0.314, 0.245, 0.336),
        'direct_weight': (20600, 12, 0.309, 1.31, 7.07),
        'shared': (16400, 8.76, 0.211, 2.66, 2.26),
        'shared_weight': (21400, 6.14, 0.447, 0.575, 7.7),
        'pixels': (25100, 0, 0.0932, 0.0191, 0.963),
        'pixels_weight': (28000, 2.86, 0.0364, 0.025, 3.93),
        'blocks': (23700, 0, 0.0503, 0.0185, 0.977, 0.3),
        'blocks_weight': (26200, 2.79, 0, 0.0246, 4.15, 0.432),
        'fft': (20600, 167, 10.4, 0),
        'fft_weight': (25100, 193, 10.1, 0),
        'fft_both': (31700, 310, 17, 0),
        'column_fft': (19500, 221, 0, 0.974, 1.27, 25.4, 1.58),
        'column_fft_weight': (21500, 390, 0, 1.6, 0.888, 25.6, 3.1),
        'column_fft_both': (28700, 454, 0, 2.05, 0.901, 39.4, 4.12),
        'transpose': (19400, 0, 0.452),
    },
    'avx2': {
        'direct': (15400, 23, 0.205, 0.267, 0.529),
        'direct_weight': (19500, 13.2, 0.275, 0.2, 7.23),
        'shared': (15600, 0, 0.0922, 2.1, 3.11),
        'shared_weight': (20500, 0, 0.305, 0.0411, 8.5),
        'pixels': (23500, 0.934, 0.132, 0.0355, 1.39),
        'pixels_weight': (23100, 12.5, 0, 0.0417, 11.9),
        'blocks': (22600, 0.83, 0.208, 0.0243, 1.34, 0.324),
        'blocks_weight': (23900, 12.7, 0, 0.0402, 11.6, 0.111),
        'fft': (20200, 157, 6.11, 0),
        'fft_weight': (23900, 165, 6.17, 0),
        'fft_both': (31200, 272, 10, 0),
        'column_fft': (17900, 234, 0, 0.637, 0.535, 14.7, 1.54),
        'column_fft_weight': (22500, 250, 0, 1.11, 0.55, 16.2, 2.18),
        'column_fft_both': (29800, 320, 0, 1.47, 0.59, 23.3, 3.24),
        'transpose': (18100, 0, 0.498),
    },
    'portable': {
        'direct': (15100, 21.3, 0.229, 0.52, 1.38),
        'direct_weight': (18900, 12.6, 0.236, 0.14, 8.41),
        'shared': (16100, 0, 0.0782, 2.61, 1.64),
        'shared_weight': (21800, 0, 0.245, 0, 7.38),
        'pixels': (23600, 1.92, 0.305, 0.0835, 2.56),
        'pixels_weight': (25800, 12, 0.0152, 0.0905, 9.22),
        'blocks': (22500, 1.55, 0.413, 0.0642, 3.24, 0.642),
        'blocks_weight': (25900, 12.4, 0, 0.0849, 9.21, 0.337),
        'fft': (19500, 139, 5.17, 0.0547),
        'fft_weight': (23400, 178, 4.12, 0.145),
        'fft_both': (30000, 283, 7.67, 0.146),
        'column_fft': (19000, 165, 0, 0.796, 0.445, 13.6, 1.24),
        'column_fft_weight': (22300, 213, 0, 1.2, 0.441, 13.4, 2.24),
        'column_fft_both': (29500, 246, 0, 1.96, 0.457, 21.5, 3.4),
        'transpose': (17500, 0, 0.678),
    },
    'torch': {
        'torch_fft': (86000, 236, 0.212),
        'torch_fft_weight': (77000, 234, 0.208),
        'channels_last': (54200, 0, 2.14, 0.0267, 0.0135),
        'channels_last_weight': (80100, 221, 0, 0.372, 1.3),
        'nchw': (68100, 0, 0.475, 0.0256, 0.952),
        'nchw_weight': (80100, 0, 0, 0.587, 1.28),
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
