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
COMPILED = ('direct', *FOURIER)
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
) -> tuple[str, ...]:
    """Choose the backends of a call.

    Args:
        backend: A name out of `BACKENDS` to insist on, or None.
        passes: What the call computes, a key of `PASSES`.
        x_shape: Shape (N, C, H, W) of the input.
        kernel: Size (kh, kw) of the kernels, no more than the map can meet.
        sharing_grid: Cell sizes of peripheral kernels; None for dense ones.

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
    return _cheapest(passes, tuple(x_shape), kernel, cells, cpu.instruction_set())


def leave_to_torch(
    x_shape: tuple[int, ...], kernel: tuple[int, int], gradients: bool, threads: int
) -> bool:
    """Decide whether torch's own operator is faster than ours with all around it.

    On small maps vectors of channels are fuller than vectors of columns, and the
    microseconds that an operator in Python takes show.

    Args:
        x_shape: Shape (N, C, H, W) of the input.
        kernel: Size (kh, kw) of the kernels, no more than the map can meet.
        gradients: Whether there will be a backward pass.
        threads: Threads that share the work.

    Returns:
        Whether to call torch's convolution, in channels_last.
    """
    if 0 in x_shape or os.environ.get(ENVIRONMENT_VARIABLE):
        return False
    return _leave_to_torch(x_shape, kernel, gradients, threads, cpu.instruction_set())


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
    (height, width), (taps, cells) = problem.size, problem.kernel
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
    'native': _channels_last,
    'native_backward': _nchw,
}

#: Floats of a vector by instruction set.
LANES = {'avx512': 16, 'avx2': 8, 'portable': 4}

# Nanoseconds, as `benchmarks/selection.py` fits them: of a call, then of what a plane
# takes on one thread. Only their ratios matter.
_COSTS: dict[str, dict[str, tuple[float, ...]]] = {
    'avx512': {
        'direct': (12900, 23.6, 0.266, 0.378, 0.479),
        'direct_weight': (16700, 15.1, 0.266, 0.794, 7.07),
        'shared': (11900, 16, 0.135, 2.58, 2.12),
        'shared_weight': (14600, 17.8, 0.4, 0, 7.6),
        'fft': (16500, 90.8, 8.4, 0.162),
        'fft_weight': (9620, 44.4, 11.5, 0.266),
        'fft_both': (26000, 135, 20, 0.43),
        'column_fft': (15000, 90, 0.6, 0.1, 0.1, 3, 0.01),
        'column_fft_weight': (15000, 90, 0.6, 0.1, 0.1, 3, 0.01),
        'column_fft_both': (20000, 150, 1, 0.15, 0.1, 5, 0.01),
    },
    'avx2': {
        'direct': (11300, 22.7, 0.213, 0.313, 0.408),
        'direct_weight': (14200, 14.9, 0.27, 0.192, 8.07),
        'shared': (10900, 0, 0.0654, 2.51, 2.98),
        'shared_weight': (13900, 4.89, 0.312, 0, 8.53),
        'fft': (14200, 102, 5.33, 0.15),
        'fft_weight': (7780, 70, 8.95, 0.0423),
        'fft_both': (26000, 135, 20, 0.43),
        'column_fft': (15000, 90, 0.6, 0.1, 0.1, 3, 0.01),
        'column_fft_weight': (15000, 90, 0.6, 0.1, 0.1, 3, 0.01),
        'column_fft_both': (20000, 150, 1, 0.15, 0.1, 5, 0.01),
    },
    'portable': {
        'direct': (11700, 19.7, 0.247, 0.511, 0.928),
        'direct_weight': (14100, 12.5, 0.241, 0.158, 7.68),
        'shared': (11400, 0, 0.106, 2.47, 1.52),
        'shared_weight': (13400, 0, 0.235, 0.164, 7.62),
        'fft': (13200, 106, 4.34, 0.136),
        'fft_weight': (8080, 65.4, 6.59, 0.0824),
        'fft_both': (26000, 135, 20, 0.43),
        'column_fft': (15000, 90, 0.6, 0.1, 0.1, 3, 0.01),
        'column_fft_weight': (15000, 90, 0.6, 0.1, 0.1, 3, 0.01),
        'column_fft_both': (20000, 150, 1, 0.15, 0.1, 5, 0.01),
    },
    'torch': {
        'torch_fft': (60700, 376, 0.182),
        'torch_fft_weight': (64900, 260, 0.18),
        'channels_last': (44200, 8.97, 1.99, 0.024, 0.0108),
        'channels_last_weight': (73200, 476, 0, 0.327, 1.35),
        'nchw': (62100, 0, 0.655, 0.0211, 1.07),
        'nchw_weight': (62000, 0, 0, 0.705, 1.46),
        'native': (38700, 36.2, 0.773, 0.0233, 0.0102),
        'native_backward': (161000, 839, 0, 0.363, 1.46),
    },
}

# Nanoseconds that a call of our operator takes longer than one of torch's, without and
# with a backward pass.
_OPERATOR = (79_000, 180_000)


def _expected(owner: str, name: str, problem: Problem) -> tuple[float, float]:
    """Expected nanoseconds of a call and, on one thread, of each plane."""
    (call, *costs), (_, *takes) = _COSTS[owner][name], FEATURES[name](problem)
    return call, sum(cost * take for cost, take in zip(costs, takes, strict=True))


def _options(
    passes: str,
    x_shape: tuple[int, ...],
    kernel: tuple[int, int],
    cells: int | None,
    instruction_set: str | None,
) -> dict[tuple[str, ...], tuple[float, float]]:
    """What is expected of the backends of the passes that can be the fastest."""

    def of_pass(suffix: str) -> dict[str, tuple[float, float]]:
        others = BACKENDS[len(COMPILED) :]
        expected = {}
        if instruction_set is not None:
            names = 'direct' if cells is None else 'shared', *FOURIER
            for backend, name in zip(COMPILED, names, strict=True):
                expected[backend] = _expected(instruction_set, name + suffix, compiled)
            # torch's weight gradients and its own FFT never are; its NCHW convolution
            # is, here and there, but takes three times as long in one process as in the
            # next.
            others = () if suffix or cells else ('channels_last',)
        for backend in others:
            expected[backend] = _expected('torch', backend + suffix, dense)
        return expected

    compiled = Problem(x_shape, kernel, cells, LANES.get(instruction_set, 1))
    dense = Problem(x_shape, kernel, None, 1)
    options = {}
    for choice in itertools.product(*(of_pass(s).items() for s in PASSES[passes])):
        backends, costs = zip(*choice, strict=True)
        options[backends] = tuple(map(sum, zip(*costs, strict=True)))
    if passes == 'both' and instruction_set is not None:
        for backend in FOURIER:
            options[backend, backend] = _expected(
                instruction_set, f'{backend}_both', compiled
            )
    return options


@functools.lru_cache(maxsize=4096)
def _cheapest(
    passes: str,
    x_shape: tuple[int, ...],
    kernel: tuple[int, int],
    cells: int | None,
    instruction_set: str | None,
) -> tuple[str, ...]:
    planes = Problem(x_shape, kernel, cells, 1).planes
    options = _options(passes, x_shape, kernel, cells, instruction_set)
    return min(options, key=lambda chosen: options[chosen][0] + planes * options[chosen][1])


@functools.lru_cache(maxsize=4096)
def _leave_to_torch(
    x_shape: tuple[int, ...],
    kernel: tuple[int, int],
    gradients: bool,
    threads: int,
    instruction_set: str | None,
) -> bool:
    problem = Problem(x_shape, kernel, None, 1)
    work = ['forward', *(['both'] if gradients else [])]
    native = ['native', *(['native_backward'] if gradients else [])]
    ours = sum(
        min(
            plane
            for _, plane in _options(
                passes, x_shape, kernel, None, instruction_set
            ).values()
        )
        for passes in work
    )
    torchs = sum(_expected('torch', name, problem)[1] for name in native)
    return _OPERATOR[gradients] + problem.planes / threads * (ours - torchs) > 0
