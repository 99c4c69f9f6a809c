"""The public operators: checks, torch.library registration, choice of backend.

Each operator is registered with fake kernels and gradients, so that torch.compile,
FLOP counters, autocast and activation checkpointing see one node each. The input
gradient is the operator itself with its kernel turned by 180 degrees, so it can be
differentiated again.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import cpu, fft, reference, selection

_library = torch.library.Library('pelk_mm', 'DEF')
_library.define(
    'depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, str? backend) -> Tensor'
)
_library.define(
    'depthwise_conv2d_weight_grad(Tensor x, Tensor grad, SymInt kh, SymInt kw, '
    'str? backend) -> Tensor'
)
_library.define(
    'peripheral_conv2d(Tensor x, Tensor weight, int[] sharing_grid, Tensor? bias) '
    '-> Tensor'
)
_library.define(
    'peripheral_conv2d_weight_grad(Tensor x, Tensor grad, int[] sharing_grid) -> Tensor'
)


# ------------------------------------------------------------------------- checks


def _under_autocast(x: Tensor) -> bool:
    """Whether autocast is on; torch cannot be asked for devices without it (meta)."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Refuse what no backend could make sense of."""
    if x.dim() != 4 or weight.dim() != 3:
        raise ValueError(
            'expected x of shape (N, C, H, W) and weight of shape (C, rows, columns), '
            f'got {tuple(x.shape)} and {tuple(weight.shape)}'
        )
    if weight.shape[0] != x.shape[1]:
        raise ValueError(
            f'weight has kernels for {weight.shape[0]} channels and x has '
            f'{x.shape[1]}; pass one kernel a channel'
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f'bias has shape {tuple(bias.shape)}; pass one value a channel, '
            f'({weight.shape[0]},)'
        )
    for name, tensor in (('weight', weight), ('bias', bias)):
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ValueError(
                f'{name} is on {tensor.device} and x on {x.device}; move one of them'
            )
        if tensor.dtype != x.dtype and not _under_autocast(x):
            raise ValueError(
                f'{name} is {tensor.dtype} and x is {x.dtype}; convert one of them or '
                'run under torch.autocast'
            )
    if not x.is_floating_point():
        raise ValueError(f'x is {x.dtype}; pass floating-point numbers')


def _check_grid(weight: Tensor, sharing_grid: Sequence[int]) -> None:
    cells = len(sharing_grid)
    if tuple(weight.shape[1:]) != (cells, cells):
        raise ValueError(
            f'sharing_grid has {cells} cells, so weight must have shape '
            f'(C, {cells}, {cells}), not {tuple(weight.shape)}'
        )
    if any(int(size) != size or size < 1 for size in sharing_grid):
        raise ValueError(
            f'sharing_grid {list(sharing_grid)} has a cell that is no positive integer'
        )
    if sum(sharing_grid) % 2 == 0:
        raise ValueError(
            f'sharing_grid {list(sharing_grid)} sums to {sum(sharing_grid)}; the '
            'kernel size must be odd to keep the size of the map'
        )


def _autocast(x: Tensor) -> Tensor:
    """Lower x as autocast does for convolutions.

    The weights stay as they are: the kernels compute in float32 in any case.
    """
    if _under_autocast(x) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def _by_reference(x: Tensor) -> bool:
    """Whether the operators of this file do not apply."""
    return (
        x.device.type not in ('cpu', 'meta')
        or x.dtype not in cpu.DTYPES
        # The exporter knows torch's own operators only.
        or torch.onnx.is_in_onnx_export()
    )


# --------------------------------------------------------------------- depthwise


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Depthwise convolution, stride 1, zero padding that keeps the size.

    On the CPU, in float32, bfloat16 and float16 (accumulated in float32), forward,
    input gradient and weight gradient each run on the backend that is expected to be
    the fastest for their shape. Elsewhere torch's own convolution serves.

    Args:
        x: Input of shape (N, C, H, W).
        weight: Kernels of shape (C, kh, kw), kh and kw odd.
        bias: Optional bias of shape (C,).
        backend: 'direct' (the compiled kernels), 'fft', 'channels_last' or 'nchw'
            (torch's convolution in either layout). By default what the environment
            variable `PELK_MM_CONV` says, else the expected fastest.

    Returns:
        Output of shape (N, C, H, W).

    Raises:
        ValueError: Shapes, dtypes or devices do not fit together, a kernel size is
            even, or the backend is unknown or missing.
    """
    _check(x, weight, bias)
    if weight.shape[1] % 2 == 0 or weight.shape[2] % 2 == 0:
        raise ValueError(
            f'kernels of {weight.shape[1]} x {weight.shape[2]} have no centre; pad '
            'them to odd sizes'
        )
    selection.check(backend)
    x = _autocast(x)
    if _by_reference(x):
        weight = weight.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        return reference.depthwise_conv2d(x, weight, bias)
    return torch.ops.pelk_mm.depthwise_conv2d(x, weight, bias, backend)


def _layout(backend: str) -> torch.memory_format:
    return (
        torch.channels_last if backend == 'channels_last' else torch.contiguous_format
    )


def _reach(x: Tensor, kh: int, kw: int) -> tuple[int, int]:
    """The taps of a kernel, each way, that some output pixel meets the map with."""
    return tuple(
        min(taps, max(1, 2 * size - 1))
        for taps, size in zip((kh, kw), x.shape[2:], strict=True)
    )


def _depthwise_cpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, backend: str | None
) -> Tensor:
    kernel = _reach(x, *weight.shape[1:])
    rows, cols = ((a - b) // 2 for a, b in zip(weight.shape[1:], kernel, strict=True))
    weight = weight[:, rows : rows + kernel[0], cols : cols + kernel[1]]
    backend = selection.choose(backend, 'convolve', x.shape, kernel)
    if backend == 'direct':
        return cpu.convolve(x, weight, bias, (1,) * kernel[0], (1,) * kernel[1])
    if not x.numel():
        return torch.empty(x.shape, dtype=x.dtype)
    wide, weight = x.float(), weight.float()
    bias = None if bias is None else bias.float()
    if backend == 'fft':
        out = fft.convolve(wide, weight)
        if bias is not None:
            out += bias[:, None, None]
    else:
        with torch.autocast('cpu', enabled=False):
            out = F.conv2d(
                wide.contiguous(memory_format=_layout(backend)),
                weight.unsqueeze(1),
                bias,
                padding=(kernel[0] // 2, kernel[1] // 2),
                groups=x.shape[1],
            )
    return out.to(x.dtype, memory_format=torch.contiguous_format)


def _depthwise_weight_grad_cpu(
    x: Tensor, grad: Tensor, kh: int, kw: int, backend: str | None
) -> Tensor:
    kernel = _reach(x, kh, kw)
    if kernel != (kh, kw):
        rows, cols = (kh - kernel[0]) // 2, (kw - kernel[1]) // 2
        inner = _depthwise_weight_grad_cpu(x, grad, *kernel, backend)
        return F.pad(inner, (cols, cols, rows, rows))
    backend = selection.choose(backend, 'weight_grad', x.shape, (kh, kw))
    if backend == 'direct':
        return cpu.weight_grad(x, grad, (1,) * kh, (1,) * kw)
    if not x.numel():
        return torch.zeros(x.shape[1], kh, kw)
    x, grad = x.float(), grad.float()
    if backend == 'fft':
        return fft.weight_grad(x, grad, (kh, kw))
    with torch.autocast('cpu', enabled=False):
        return torch.ops.aten.convolution_backward(
            grad.contiguous(memory_format=_layout(backend)),
            x.contiguous(memory_format=_layout(backend)),
            x.new_empty(x.shape[1], 1, kh, kw),
            None,
            [1, 1],
            [kh // 2, kw // 2],
            [1, 1],
            False,
            [0, 0],
            x.shape[1],
            [False, True, False],
        )[1].squeeze(1)


_library.impl('depthwise_conv2d', _depthwise_cpu, 'CPU')
_library.impl('depthwise_conv2d_weight_grad', _depthwise_weight_grad_cpu, 'CPU')


@torch.library.register_fake('pelk_mm::depthwise_conv2d')
def _(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake('pelk_mm::depthwise_conv2d_weight_grad')
def _(x: Tensor, grad: Tensor, kh: int, kw: int, backend: str | None) -> Tensor:
    return x.new_empty(x.shape[1], kh, kw, dtype=torch.float32)


def _save_for_gradients(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
    ctx.kernel, ctx.weight_dtype = weight.shape[1:], weight.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype


def _bias_grad(grad: Tensor, dtype: torch.dtype) -> Tensor:
    return grad.sum((0, 2, 3), dtype=torch.float32).to(dtype)


def _depthwise_setup(ctx, inputs, output) -> None:
    x, weight, bias, ctx.backend = inputs
    _save_for_gradients(ctx, x, weight, bias)


def _depthwise_backward(ctx, grad: Tensor):
    x, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grad_x = grad_weight = grad_bias = None
    if needs[0]:
        grad_x = torch.ops.pelk_mm.depthwise_conv2d(
            grad, weight.flip(-2, -1), None, ctx.backend
        )
    if needs[1]:
        grad_weight = torch.ops.pelk_mm.depthwise_conv2d_weight_grad(
            x, grad, *ctx.kernel, ctx.backend
        ).to(ctx.weight_dtype)
    if needs[2]:
        grad_bias = _bias_grad(grad, ctx.bias_dtype)
    return grad_x, grad_weight, grad_bias, None


torch.library.register_autograd(
    'pelk_mm::depthwise_conv2d', _depthwise_backward, setup_context=_depthwise_setup
)


def _depthwise_weight_grad_setup(ctx, inputs, output) -> None:
    x, grad, _, _, ctx.backend = inputs
    ctx.save_for_backward(x, grad)


def _depthwise_weight_grad_backward(ctx, outer: Tensor):
    """Differentiate again: the weight gradient is bilinear in x and grad."""
    x, grad = ctx.saved_tensors
    convolve = torch.ops.pelk_mm.depthwise_conv2d
    grad_x = grad_grad = None
    if ctx.needs_input_grad[0]:
        grad_x = convolve(grad, outer.flip(-2, -1), None, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_grad = convolve(x, outer, None, ctx.backend)
    return grad_x, grad_grad, None, None, None


torch.library.register_autograd(
    'pelk_mm::depthwise_conv2d_weight_grad',
    _depthwise_weight_grad_backward,
    setup_context=_depthwise_weight_grad_setup,
)


# -------------------------------------------------------------------- peripheral


def peripheral_conv2d(
    x: Tensor,
    weight: Tensor,
    sharing_grid: Sequence[int],
    bias: Tensor | None = None,
) -> Tensor:
    """Peripheral convolution: K x K taps that share k' x k' parameters.

    On the CPU, in float32, bfloat16 and float16 (accumulated in float32), the kernel
    is never expanded: box sums make the cost k'^2 multiply-adds a pixel instead of K^2
    (PeLK, section 4.1; `docs/performance.md`). Elsewhere, and where the compiled
    kernels are missing, the expanded kernel serves.

    Args:
        x: Input of shape (N, C, H, W).
        weight: Shared parameters of shape (C, k', k').
        sharing_grid: Cell sizes along either axis, k' of them; their sum K, the
            kernel size, is odd.
        bias: Optional bias of shape (C,).

    Returns:
        Output of shape (N, C, H, W).

    Raises:
        ValueError: Shapes, dtypes or devices do not fit together, or the grid is not
            made of positive integers with an odd sum.
    """
    _check(x, weight, bias)
    _check_grid(weight, sharing_grid)
    x = _autocast(x)
    if _by_reference(x):
        weight = weight.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        return reference.peripheral_conv2d(x, weight, sharing_grid, bias)
    return torch.ops.pelk_mm.peripheral_conv2d(x, weight, list(sharing_grid), bias)


def _peripheral_cpu(
    x: Tensor, weight: Tensor, sharing_grid: list[int], bias: Tensor | None
) -> Tensor:
    if cpu.instruction_set():
        return cpu.convolve(x, weight, bias, sharing_grid, sharing_grid)
    kernel = reference.expand_kernel(weight, sharing_grid)
    return _depthwise_cpu(x, kernel, bias, None)


def _peripheral_weight_grad_cpu(
    x: Tensor, grad: Tensor, sharing_grid: list[int]
) -> Tensor:
    if cpu.instruction_set():
        return cpu.weight_grad(x, grad, sharing_grid, sharing_grid)
    taps = sum(sharing_grid)
    dense = _depthwise_weight_grad_cpu(x, grad, taps, taps, None)
    return reference.box_sum(dense, sharing_grid)


_library.impl('peripheral_conv2d', _peripheral_cpu, 'CPU')
_library.impl('peripheral_conv2d_weight_grad', _peripheral_weight_grad_cpu, 'CPU')


@torch.library.register_fake('pelk_mm::peripheral_conv2d')
def _(x: Tensor, weight: Tensor, sharing_grid: list[int], bias: Tensor | None):
    return x.new_empty(x.shape)


@torch.library.register_fake('pelk_mm::peripheral_conv2d_weight_grad')
def _(x: Tensor, grad: Tensor, sharing_grid: list[int]) -> Tensor:
    cells = len(sharing_grid)
    return x.new_empty(x.shape[1], cells, cells, dtype=torch.float32)


def _peripheral_setup(ctx, inputs, output) -> None:
    x, weight, ctx.sharing_grid, bias = inputs
    _save_for_gradients(ctx, x, weight, bias)


def _peripheral_backward(ctx, grad: Tensor):
    x, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grad_x = grad_weight = grad_bias = None
    if needs[0]:
        grad_x = torch.ops.pelk_mm.peripheral_conv2d(
            grad, weight.flip(-2, -1), ctx.sharing_grid[::-1], None
        )
    if needs[1]:
        grad_weight = torch.ops.pelk_mm.peripheral_conv2d_weight_grad(
            x, grad, ctx.sharing_grid
        ).to(ctx.weight_dtype)
    if needs[3]:
        grad_bias = _bias_grad(grad, ctx.bias_dtype)
    return grad_x, grad_weight, None, grad_bias


torch.library.register_autograd(
    'pelk_mm::peripheral_conv2d', _peripheral_backward, setup_context=_peripheral_setup
)


def _peripheral_weight_grad_setup(ctx, inputs, output) -> None:
    x, grad, ctx.sharing_grid = inputs
    ctx.save_for_backward(x, grad)


def _peripheral_weight_grad_backward(ctx, outer: Tensor):
    """Differentiate again: the weight gradient is bilinear in x and grad."""
    x, grad = ctx.saved_tensors
    convolve = torch.ops.pelk_mm.peripheral_conv2d
    grid = ctx.sharing_grid
    grad_x = grad_grad = None
    if ctx.needs_input_grad[0]:
        grad_x = convolve(grad, outer.flip(-2, -1), grid[::-1], None)
    if ctx.needs_input_grad[1]:
        grad_grad = convolve(x, outer, grid, None)
    return grad_x, grad_grad, None


torch.library.register_autograd(
    'pelk_mm::peripheral_conv2d_weight_grad',
    _peripheral_weight_grad_backward,
    setup_context=_peripheral_weight_grad_setup,
)


# ------------------------------------------------------------------ FLOP counters


@register_flop_formula(torch.ops.pelk_mm.depthwise_conv2d)
def _(x_shape, weight_shape, *args, **kwargs) -> int:
    return 2 * x_shape.numel() * weight_shape[1] * weight_shape[2]


@register_flop_formula(torch.ops.pelk_mm.depthwise_conv2d_weight_grad)
def _(x_shape, grad_shape, kh, kw, *args, **kwargs) -> int:
    return 2 * x_shape.numel() * kh * kw


@register_flop_formula(torch.ops.pelk_mm.peripheral_conv2d)
def _(x_shape, weight_shape, sharing_grid, *args, **kwargs) -> int:
    return 2 * x_shape.numel() * len(sharing_grid) ** 2


@register_flop_formula(torch.ops.pelk_mm.peripheral_conv2d_weight_grad)
def _(x_shape, grad_shape, sharing_grid, *args, **kwargs) -> int:
    return 2 * x_shape.numel() * len(sharing_grid) ** 2
