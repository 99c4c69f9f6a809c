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
    channels = max(1, problem.shape[1])
    full = math.ceil(channels / problem.lanes) * problem.lanes / channels
    groups = math.ceil(problem.kernel[1] / 5)
    return (
        1 / problem.planes,
        full * problem.size[0] * groups,
        full * problem.pixels * groups,
        full * problem.products,
        full * problem.kernel[0] * problem.kernel[1] / max(1, problem.shape[0]),
    )


def _blocks(problem: Problem) -> tuple[float, ...]:
    channels = max(1, problem.shape[1])
    full = math.ceil(channels / problem.lanes) * problem.lanes / channels
    return *_pixels(problem), full * problem.pixels


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
        'direct': (16200, 24.5, 0.314, 0.243, 0.45),
        'direct_weight': (19100, 11.9, 0.318, 1.22, 7.34),
        'shared': (15200, 1.75, 0.248, 2.34, 3.98),
        'shared_weight': (18100, 0, 0.459, 0.61, 9.11),
        'pixels': (22400, 0, 0.103, 0.0197, 0.691),
        'pixels_weight': (22400, 3.46, 0.0449, 0.0254, 3.35),
        'fft': (21100, 0, 16.9, 0),
        'fft_weight': (21500, 118, 16.5, 0),
        'fft_both': (33100, 0, 27.9, 0),
        'column_fft': (19200, 308, 0.948, 1.11, 1.23, 30, 1.58),
        'column_fft_weight': (20400, 396, 0, 1.72, 0.912, 43, 3.19),
        'column_fft_both': (27500, 496, 1.47, 2.53, 0.817, 44.5, 4.27),
        'transpose': (22600, 1.4, 0.328),
    },
    'avx2': {
        'direct': (15800, 24.2, 0.207, 0.203, 0.56),
        'direct_weight': (18200, 14.5, 0.274, 0.169, 7.23),
        'shared': (15400, 0, 0.103, 1.97, 3.67),
        'shared_weight': (18300, 0.532, 0.307, 0, 9.17),
        'pixels': (21900, 0, 0.137, 0.0317, 1.09),
        'pixels_weight': (19100, 12.6, 0, 0.0434, 10.3),
        'fft': (19400, 134, 9.28, 0),
        'fft_weight': (21200, 152, 9.38, 0),
        'fft_both': (28700, 225, 15.2, 0),
        'column_fft': (18600, 232, 0, 0.662, 0.599, 19.6, 1.76),
        'column_fft_weight': (21000, 265, 0, 1.13, 0.547, 19.8, 2.26),
        'column_fft_both': (27000, 337, 0, 1.56, 0.459, 29.5, 3.53),
        'transpose': (18900, 23.3, 0.43),
    },
    'portable': {
        'direct': (15600, 21.9, 0.236, 0.42, 1.56),
        'direct_weight': (17500, 11.1, 0.238, 0.121, 8.41),
        'shared': (15500, 0, 0.0662, 2.67, 2.33),
        'shared_weight': (17300, 0, 0.221, 0.244, 8.38),
        'pixels': (21700, 1.27, 0.235, 0.0776, 1.52),
        'pixels_weight': (19800, 12.4, 0, 0.0923, 8.52),
        'fft': (18500, 87.3, 7.91, 0.0769),
        'fft_weight': (20400, 126, 7.19, 0.14),
        'fft_both': (27600, 149, 12.9, 0.126),
        'column_fft': (19000, 154, 0.0125, 0.827, 0.499, 19.7, 1.78),
        'column_fft_weight': (20600, 205, 0.0965, 1.31, 0.52, 18.1, 2.61),
        'column_fft_both': (27100, 233, 0.0216, 2.11, 0.417, 30, 3.93),
        'transpose': (19200, 2.02, 0.609),
    },
    'torch': {
        'torch_fft': (78400, 210, 0.241),
        'torch_fft_weight': (72800, 189, 0.234),
        'channels_last': (50200, 0, 2.35, 0.0291, 0.0152),
        'channels_last_weight': (80400, 170, 0, 0.4, 1.37),
        'nchw': (66400, 0, 0.609, 0.0275, 1),
        'nchw_weight': (74300, 0, 0, 0.643, 1.33),
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
