"""Which backend a depthwise convolution on the CPU runs on.

A measured cost model, not a timing: timings differ from run to run, and with them the
choice and the last bits of the result.
"""

import functools
import math
import os

from . import cpu, fft

COMPILED = ('direct', 'fft')
BACKENDS = (*COMPILED, 'torch_fft', 'channels_last', 'nchw')
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
    x_shape: tuple[int, ...],
    kernel: tuple[int, int],
    sharing_grid: list[int] | None = None,
) -> str:
    """Choose the backend of one pass.

    Args:
        backend: A name out of `BACKENDS` to insist on, or None.
        work: 'convolve' (forward, input gradient) or 'weight_grad'.
        x_shape: Shape (N, C, H, W) of the input.
        kernel: Size (kh, kw) of the kernels.

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
    return _cheapest(work, tuple(x_shape), kernel, cpu.instruction_set())


@functools.lru_cache(maxsize=4096)
def _cheapest(
    work: str,
    x_shape: tuple[int, ...],
    kernel: tuple[int, int],
    instruction_set: str | None,
) -> str:
    costs = {name: cost(x_shape, kernel) for name, cost in _TORCH_COSTS[work].items()}
    costs['torch_fft']=costs.pop('fft')
    if instruction_set is not None:
        slowdown = _SLOWDOWN[instruction_set]
        costs['direct'] = _DIRECT_COSTS[work](x_shape, kernel, slowdown)
    return min(costs, key=costs.get)


# Expected time of each backend: nanoseconds a plane on one thread, fitted to what
# `benchmarks/ops.py` measures with AVX-512. Only their ratios matter.

# Time of the compiled kernels' products, AVX-512 being 1. Not fitted: set so that the
# model agrees with short runs (`tests/test_ops/test_selection.py`).
_SLOWDOWN = {'avx512': 1.0, 'avx2': 2.2, 'portable': 3.3}


def _met(size: int, taps: int) -> float:
    """Taps that meet the map, on average over its pixels along one axis."""
    radius = min(taps // 2, size - 1)
    return 2 * radius + 1 - radius * (radius + 1) / max(1, size)


def _products(x_shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    """Vectors of products that the compiled kernels compute a row."""
    vectors = math.ceil(x_shape[3] / 16)
    return vectors * _met(x_shape[2], kernel[0]) * min(kernel[1], x_shape[3] + 15)


def _direct(
    x_shape: tuple[int, ...], kernel: tuple[int, int], slowdown: float
) -> float:
    rows = x_shape[2] * (55 + 0.24 * slowdown * _products(x_shape, kernel))
    return 0.9 * kernel[0] * kernel[1] + rows


def _direct_weight_grad(
    x_shape: tuple[int, ...], kernel: tuple[int, int], slowdown: float
) -> float:
    rows = x_shape[2] * (40 + 0.31 * slowdown * _products(x_shape, kernel))
    return 4 * kernel[0] * kernel[1] + rows


def _fft(x_shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    height, width = fft.lengths(x_shape, kernel)
    points = height * width
    # The transforms of the kernels serve the whole batch.
    return (2 + 1 / max(1, x_shape[0])) * (700 + 0.19 * points * math.log2(points))


def _torch_pixel(x_shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    return _met(x_shape[2], kernel[0]) * _met(x_shape[3], kernel[1])


def _channels_last(x_shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    # Square kernels between 7 and 15 or so fall between two of oneDNN's algorithms.
    pause = 7.0 if 7 < min(kernel) <= 15 else 0.0
    pixel = 2.3 + pause + 0.022 * _torch_pixel(x_shape, kernel)
    return x_shape[2] * x_shape[3] * pixel


def _nchw(x_shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    # Above this width oneDNN's kernel gives way to a plain one.
    tap = 0.02 if kernel[1] <= 13 else 0.6
    return x_shape[2] * x_shape[3] * (1.4 + tap * _torch_pixel(x_shape, kernel))


def _torch_weight_grad(x_shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    return x_shape[2] * x_shape[3] * (1.0 + 0.5 * _torch_pixel(x_shape, kernel))


_DIRECT_COSTS = {'convolve': _direct, 'weight_grad': _direct_weight_grad}
_TORCH_COSTS = {
    'convolve': {'fft': _fft, 'channels_last': _channels_last, 'nchw': _nchw},
    'weight_grad': {'fft': _fft, 'nchw': _torch_weight_grad},
}
