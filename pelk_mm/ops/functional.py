"""The public operators: checks, and the way into torch that a call takes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import operators
from ._torch_compat import in_forward_mode, is_watched, under_autocast
from .backends.base import Backend, Passes
from .choose import (
    BACKENDS,
    available,
    by_backend,
    choose,
    expected_time,
    is_timed,
    measured,
    measured_time,
    require_known,
)
from .layout import memory_format
from .problem import Problem, dtype_name
from .switch import is_plain

# ------------------------------------------------------------------------- checks


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, partial: bool = False
) -> None:
    """Refuse what no backend could make sense of."""
    if x.dim() != 4 or weight.dim() != 3:
        raise ValueError(
            'expected x of shape (N, C, H, W) and weight of shape (C, rows, columns), '
            f'got {tuple(x.shape)} and {tuple(weight.shape)}'
        )
    if partial and weight.shape[0] > x.shape[1]:
        raise ValueError(
            f'weight has kernels for {weight.shape[0]} channels and x has only '
            f'{x.shape[1]}; pass one kernel per channel to convolve'
        )
    if not partial and weight.shape[0] != x.shape[1]:
        raise ValueError(
            f'weight has kernels for {weight.shape[0]} channels and x has '
            f'{x.shape[1]}; pass one kernel per channel, or partial=True where the '
            'other channels are to pass unchanged'
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f'bias has shape {tuple(bias.shape)}; pass one value per channel, '
            f'({weight.shape[0]},)'
        )
    for name, tensor in (('weight', weight), ('bias', bias)):
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ValueError(
                f'{name} is on {tensor.device} and x on {x.device}; move one of them'
            )
        if tensor.dtype != x.dtype and not under_autocast(x.device.type):
            raise ValueError(
                f'{name} is {tensor.dtype} and x is {x.dtype}; convert one of them or '
                'run under torch.autocast'
            )
    if not x.is_floating_point():
        raise ValueError(f'x is {x.dtype}; pass floating-point numbers')


def _check_kernel(weight: Tensor) -> None:
    if weight.shape[1] % 2 == 0 or weight.shape[2] % 2 == 0:
        raise ValueError(
            f'kernels of {weight.shape[1]} x {weight.shape[2]} have no centre; pad '
            'them to odd sizes'
        )


def _check_grid(weight: Tensor, sharing_grid: Sequence[int]) -> None:
    cells = len(sharing_grid)
    if tuple(weight.shape[1:]) != (cells, cells):
        raise ValueError(
            f'sharing_grid has {cells} cells, so weight must have shape '
            f'(C, {cells}, {cells}), not {tuple(weight.shape)}'
        )
    if any(
        not isinstance(size, (int, torch.SymInt)) or size < 1 for size in sharing_grid
    ):
        raise ValueError(
            f'sharing_grid {list(sharing_grid)} has a cell that is no positive integer'
        )
    if sum(sharing_grid) % 2 == 0:
        raise ValueError(
            f'sharing_grid {list(sharing_grid)} sums to {sum(sharing_grid)}; the '
            'kernel size must be odd to keep the size of the map'
        )


# ------------------------------------------------------------------ into torch


def _autocast(x: Tensor) -> Tensor:
    """Lower x as autocast does for convolutions.

    The weights stay as they are: sums are kept in float32 in any case.
    """
    if under_autocast(x.device.type) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def _needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd has to know of a call, in order to refuse forward mode too."""
    return in_forward_mode() or (
        torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in tensors)
    )


def _is_in_memory(tensor: Tensor) -> bool:
    """Whether a tensor is one of torch's own, in memory."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta


def _run(
    operator: operators.Operator,
    x: Tensor,
    weight: Tensor,
    sharing_grid: list[int] | None,
    bias: Tensor | None,
    backend: str | None,
) -> Tensor:
    require_known(backend)
    lowered = _autocast(x)
    channels = weight.shape[0]
    if lowered.dtype != x.dtype and channels != x.shape[1]:
        # The channels that are not convolved keep their precision.
        first = _run(operator, x[:, :channels], weight, sharing_grid, bias, backend)
        return torch.cat((first.to(x.dtype), x[:, channels:]), dim=1)
    x = lowered
    if is_plain():
        # Whoever looks on sees the operators that the backend calls, not ours.
        call = operators.forward
    elif (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_watched()
        or not all(t is None or _is_in_memory(t) for t in (x, weight, bias))
    ):
        call = operator.dispatched
    elif _needs_grad(x, weight, bias):
        call = operator.function.apply
    else:
        call = operators.forward
    return call(x, weight, sharing_grid, bias, backend)


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    partial: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Depthwise convolution, stride 1, zero padding that keeps the size.

    Equals ``F.conv2d(x, weight[:, None], bias, padding=(kh // 2, kw // 2),
    groups=C)``, with sums kept in float32 at least. Forward, input gradient and weight
    gradient each run on the backend that is expected to be the fastest for their
    shape; `explain` tells which.

    Args:
        x: Input of shape (N, C, H, W).
        weight: Kernels of shape (C, kh, kw), kh and kw odd.
        bias: Optional bias of shape (C,).
        partial: Whether ``x`` may have more than C channels. Only the first C are
            convolved then, and the others pass unchanged: ``torch.cat((conv(x[:, :C]),
            x[:, C:]), 1)``, without the copies that this takes.
        backend: Name of a backend to insist on, see `available_backends`. By default
            what the environment variable `PELK_MM_CONV` says, else the expected
            fastest.

    Returns:
        Output of the shape of ``x``, channels_last where the input is, else contiguous.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit together, a kernel size is
            even, or the backend asked for does not exist or cannot compute this.
    """
    _check(x, weight, bias, partial)
    _check_kernel(weight)
    return _run(operators.depthwise_conv2d, x, weight, None, bias, backend)


def peripheral_conv2d(
    x: Tensor,
    weight: Tensor,
    sharing_grid: Sequence[int],
    bias: Tensor | None = None,
    *,
    partial: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Peripheral convolution: K x K taps that share k' x k' parameters.

    Equals `depthwise_conv2d` of `expand_kernel(weight, sharing_grid)` (PeLK, section
    4.1). Backends that know of the grid need fewer operations; the others expand it.

    Args:
        x: Input of shape (N, C, H, W).
        weight: Shared parameters of shape (C, k', k').
        sharing_grid: Cell sizes along either axis, k' of them; their sum K, the
            kernel size, is odd.
        bias: Optional bias of shape (C,).
        partial: As for `depthwise_conv2d`.
        backend: As for `depthwise_conv2d`.

    Returns:
        Output of the shape of ``x``, channels_last where the input is, else contiguous.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit together, the grid is not
            made of positive integers with an odd sum, or the backend asked for does
            not exist or cannot compute this.
    """
    _check(x, weight, bias, partial)
    _check_grid(weight, sharing_grid)
    grid = _shared(sharing_grid)
    return _run(operators.peripheral_conv2d, x, weight, grid, bias, backend)


def _shared(sharing_grid: Sequence[int]) -> list[int] | None:
    """A grid, or None where nothing is shared: then no sum serves several taps."""
    return list(sharing_grid) if sum(sharing_grid) > len(sharing_grid) else None


# ------------------------------------------------------------------ which backend


def available_backends(
    device: str | torch.device = 'cpu', dtype: torch.dtype = torch.float32
) -> list[str]:
    """Names of the backends that can run here.

    Args:
        device: Where the tensors are.
        dtype: Their data type.
    """
    kind = torch.device(device).type
    problem = Problem((1, 1, 8, 8), (3, 3), dtype=dtype, device=kind, plain=is_plain())
    return available(problem)


def explain(
    x: Tensor,
    weight: Tensor,
    sharing_grid: Sequence[int] | None = None,
    *,
    backend: str | None = None,
) -> str:
    """Tell which backends a convolution runs on, and why not on the others.

    Nothing is computed or timed. Prints a line per backend: its expected times on one
    thread, on CUDA those that were measured, or the reason why it cannot run.

    Args:
        x: Input of shape (N, C, H, W).
        weight: Kernels of shape (C, kh, kw), or parameters (C, k', k') of a grid.
        sharing_grid: Cell sizes of a peripheral convolution; None for a dense one.
        backend: As for the operators.

    Returns:
        What it prints.

    Raises:
        ValueError: As the operators do.
    """
    _check(x, weight, None)
    grid = None
    if sharing_grid is None:
        _check_kernel(weight)
    else:
        _check_grid(weight, sharing_grid)
        grid = _shared(sharing_grid)
    problem = Problem.of(_autocast(x), weight, grid)
    last = memory_format(x) == torch.channels_last
    lines = [
        f'{problem.kernel[0]} x {problem.kernel[1]} '
        f'{"dense" if grid is None else f"shared by {len(grid)} x {len(grid)}"} on '
        f'{" x ".join(map(str, problem.shape))}, '
        f'{dtype_name(problem.dtype)}, {"channels_last" if last else "contiguous"}, '
        f'{problem.device}'
    ]
    calls = {'forward': ('forward',), 'backward': ('input', 'weight')}
    width = max(map(len, BACKENDS))
    for name, each in BACKENDS.items():
        reason = each.why_not(problem)
        if reason is None:
            told = ', '.join(
                f'{call} {_time(problem, passes, (each,) * len(passes))}'
                for call, passes in calls.items()
            )
            if each.stands_in and not is_timed(problem):
                told += ' (stands in where no other can)'
        else:
            told = f'no: {reason}'
        lines.append(f'  {name:{width}}  {told}')
    for call, passes in calls.items():
        option = choose(problem, passes, backend, may_time=False)
        parts = [
            each.name + f' for {" and ".join(own)}' * (own != passes)
            for each, own in by_backend(passes, option)
        ]
        lines.append(f'{call}: {", ".join(parts)}, {_time(problem, passes, option)}')
    text = '\n'.join(lines)
    print(text)
    return text


def _time(problem: Problem, passes: Passes, option: tuple[Backend, ...]) -> str:
    """What `explain` says of the time of passes, each on a backend."""
    times = measured(problem, passes)
    if times is not None:
        time = measured_time(passes, option, times)
        return 'failed' if time is None else f'{time / 1e6:.3g} ms measured'
    if is_timed(problem):
        return 'not timed yet'
    time = expected_time(problem, passes, option)
    return f'{time / 1e6:.3g} ms' if time < float('inf') else 'not measured'
