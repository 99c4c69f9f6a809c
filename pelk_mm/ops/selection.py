"""Which backend a depthwise convolution on the CPU runs on.

A measured cost model, not a timing: timings differ from run to run, and with them the
choice and the last bits of the result.
"""

import math
import os

from . import cpu, fft

BACKENDS = ('direct', 'fft', 'channels_last', 'nchw')
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
    if backend == 'direct' and cpu.instruction_set() is None:
        raise ValueError(
            "the backend 'direct' needs the compiled kernels, which were not built or "
            f'are turned off by {cpu.ENVIRONMENT_VARIABLE}; use one of '
            f'{list(BACKENDS[1:])}'
        )


def choose(
    backend: str | None,
    work: str,
    x_shape: tuple[int, ...],
    kernel: tuple[int, int],
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
    costs = _COSTS[work]
    available = [
        name for name in costs if name != 'direct' or cpu.instruction_set() is not None
    ]
    return min(available, key=lambda name: costs[name](x_shape, kernel))


# Expected time of each backend: nanoseconds a plane on one thread, fitted to
# `benchmarks/ops.py`. Only their ratios matter.


def _direct(x_shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    rows, vectors = x_shape[2], math.ceil(x_shape[3] / 16)
    return rows * (40 + vectors * (12 + 0.22 * kernel[0] * kernel[1]))


def _direct_weight_grad(x_shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    rows, vectors = x_shape[2], math.ceil(x_shape[3] / 16)
    return 500 + rows * (40 + vectors * (12 + 0.26 * kernel[0] * kernel[1]))


def _fft(x_shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    height, width = fft.lengths(x_shape, kernel)
    points = height * width
    return (2 + 1 / max(1, x_shape[0])) * (400 + 0.18 * points * math.log2(points))


def _channels_last(x_shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    return x_shape[2] * x_shape[3] * (2.6 + 0.02 * kernel[0] * kernel[1])


def _nchw(x_shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    # Above this width oneDNN's kernel gives way to a plain one.
    tap = 0.02 if kernel[1] <= 13 else 0.6
    return x_shape[2] * x_shape[3] * (1.3 + tap * kernel[0] * kernel[1])


def _torch_weight_grad(x_shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    return x_shape[2] * x_shape[3] * (1.0 + 0.5 * kernel[0] * kernel[1])


_COSTS = {
    'convolve': {
        'direct': _direct,
        'fft': _fft,
        'channels_last': _channels_last,
        'nchw': _nchw,
    },
    'weight_grad': {
        'direct': _direct_weight_grad,
        'fft': _fft,
        'nchw': _torch_weight_grad,
    },
}
