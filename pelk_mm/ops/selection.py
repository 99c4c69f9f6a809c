"""Which backend a depthwise convolution on the CPU runs on.

A measured cost model, not a timing: timings differ from run to run, and with them the
choice and the last bits of the result.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import cpu, fft

COMPILED = ('direct', 'fft')
LAYOUTS = ('channels_last', 'nchw')
BACKENDS = (*COMPILED, 'torch_fft', *LAYOUTS)
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
    work: str,
    x_shape: Sequence[int],
    kernel: tuple[int, int],
    sharing_grid: Sequence[int] | None = None,
) -> str:
    """Choose the backend of one pass.

    Args:
        backend: A name out of `BACKENDS` to insist on, or None.
        work: 'convolve' (forward, input gradient) or 'weight_grad'.
        x_shape: Shape (N, C, H, W) of the input.
        kernel: Size (kh, kw) of the kernels, no more than the map can meet.
        sharing_grid: Cell sizes of peripheral kernels; None for dense ones.

    Returns:
        The backend asked for by the argument, else by `PELK_MM_CONV`, else the one of
        the least expected time.

    Raises:
        ValueError: `PELK_MM_CONV` names a backend that does not exist here.
    """
    if backend is None:
        backend = os.environ.get(ENVIRONMENT_VARIABLE) or None
        check(backend)
    if backend is not None:
        return backend
    cells = None if sharing_grid is None else len(sharing_grid)
    return _cheapest(work, tuple(x_shape), kernel, cells, cpu.instruction_set())


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


def _fft_weight(problem: Problem) -> tuple[float, ...]:
    """Beside an input gradient by Fourier transforms, with which it shares one."""
    per_call, fixed, points, products = _fft(problem)
    return per_call, fixed, points / 2, products / 2


def _torch_fft(problem: Problem) -> tuple[float, ...]:
    batch = max(1, problem.shape[0])
    down, along = fft.lengths(problem.shape, problem.kernel)
    points = (2 + 1 / batch) * down * along
    return 1 / problem.planes, 2 + 1 / batch, points * math.log2(down * along)


def _channels_last(problem: Problem) -> tuple[float, ...]:
    pixels = problem.size[0] * problem.size[1]
    return 1 / problem.planes, 1, pixels, pixels * problem.met(0) * problem.met(1)


def _nchw(problem: Problem) -> tuple[float, ...]:
    pixels = problem.size[0] * problem.size[1]
    products = pixels * problem.met(0) * problem.met(1)
    # Above this width oneDNN's kernel gives way to a plain one.
    plain = products if problem.kernel[1] > 13 else 0
    return 1 / problem.planes, 1, pixels, products - plain, plain


#: Of each cost, what it is a linear combination of.
FEATURES: dict[str, Callable[[Problem], tuple[float, ...]]] = {
    'direct': _direct,
    'direct_weight': _direct,
    'shared': _direct,
    'shared_weight': _direct,
    'fft': _fft,
    'fft_weight': _fft_weight,
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
        'direct': (12200, 34.9, 0.202, 0.801, 1.05),
        'direct_weight': (15300, 15.6, 0.273, 0.838, 6.23),
        'shared': (10100, 0, 0.0971, 2.93, 7.14),
        'shared_weight': (11300, 0, 0.418, 0, 11.5),
        'fft': (15300, 141, 5.9, 0.357),
        'fft_weight': (8690, 69.7, 9.47, 0.423),
    },
    'avx2': {
        'direct': (11200, 29.3, 0.154, 0.89, 1.43),
        'direct_weight': (13700, 15, 0.268, 0.181, 7.22),
        'shared': (9470, 0, 0.0282, 2.87, 6.03),
        'shared_weight': (10400, 0, 0.306, 0, 11.4),
        'fft': (13800, 95.5, 5.25, 0.156),
        'fft_weight': (7250, 77, 8.36, 0.0959),
    },
    'portable': {
        'direct': (11500, 29.9, 0.231, 0.863, 1.86),
        'direct_weight': (13600, 11.7, 0.232, 0.173, 6.81),
        'shared': (8950, 0, 0.0588, 2.99, 6.36),
        'shared_weight': (9990, 0, 0.24, 0, 10.4),
        'fft': (12600, 98.9, 4.59, 0.115),
        'fft_weight': (7260, 78.6, 6.44, 0.0958),
    },
    'torch': {
        'torch_fft': (58500, 246, 0.177),
        'torch_fft_weight': (60000, 156, 0.197),
        'channels_last': (44300, 27.2, 1.81, 0.0235),
        'channels_last_weight': (72700, 24.5, 0, 0.315, 1.18),
        'nchw': (59600, 0, 0.67, 0.0211, 0.979),
        'nchw_weight': (70500, 0, 0, 0.296, 1.38),
        'native': (38300, 28, 0.814, 0.023),
        'native_backward': (157000, 233, 0, 0.363, 1.28),
    },
}

# Nanoseconds that an operator in Python adds, without and with a backward pass.
_OPERATOR = (16_000, 100_000)


def _expected(owner: str, name: str, problem: Problem, threads: int = 1) -> float:
    """Expected nanoseconds of a pass."""
    (call, *costs), (_, *takes) = _COSTS[owner][name], FEATURES[name](problem)
    plane = sum(cost * take for cost, take in zip(costs, takes, strict=True))
    return call + problem.planes * plane / threads


def _times(
    work: str,
    x_shape: tuple[int, ...],
    kernel: tuple[int, int],
    cells: int | None,
    instruction_set: str | None,
    threads: int = 1,
) -> dict[str, float]:
    """Expected nanoseconds by backend: of the compiled ones where there are any."""
    suffix = '' if work == 'convolve' else '_weight'
    times = {}
    if instruction_set is not None:
        problem = Problem(x_shape, kernel, cells, LANES[instruction_set])
        names = 'direct' if cells is None else 'shared', 'fft'
        for backend, name in zip(COMPILED, names, strict=True):
            times[backend] = _expected(instruction_set, name + suffix, problem, threads)
    else:
        problem = Problem(x_shape, kernel, None, 1)
        for backend in BACKENDS[len(COMPILED) :]:
            times[backend] = _expected('torch', backend + suffix, problem, threads)
    return times


@functools.lru_cache(maxsize=4096)
def _cheapest(
    work: str,
    x_shape: tuple[int, ...],
    kernel: tuple[int, int],
    cells: int | None,
    instruction_set: str | None,
) -> str:
    times = _times(work, x_shape, kernel, cells, instruction_set)
    return min(times, key=times.get)


@functools.lru_cache(maxsize=4096)
def _leave_to_torch(
    x_shape: tuple[int, ...],
    kernel: tuple[int, int],
    gradients: bool,
    threads: int,
    instruction_set: str | None,
) -> bool:
    problem = Problem(x_shape, kernel, None, 1)
    passes = ['convolve', *(['convolve', 'weight_grad'] if gradients else [])]
    ours = _OPERATOR[gradients] + sum(
        min(_times(work, x_shape, kernel, None, instruction_set, threads).values())
        for work in passes
    )
    native = ['native', *(['native_backward'] if gradients else [])]
    return ours > sum(_expected('torch', name, problem, threads) for name in native)
