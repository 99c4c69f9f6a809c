"""The public operators: checks, torch.library registration, choice of backend.

Each operator and the one that computes its gradients are registered with fake kernels
and gradients, so that torch.compile, FLOP counters, autocast and activation
checkpointing see one node each, and both can be differentiated again.
"""

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from . import fft, reference, selection
from .backends.cpu import kernels
from .backends.cpu.library import DTYPES
from .layout import memory_format

LAYOUTS = {
    'channels_last': torch.channels_last,
    'nchw': torch.contiguous_format,
}

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
    if any(
        not isinstance(size, int | torch.SymInt) or size < 1 for size in sharing_grid
    ):
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
        or x.dtype not in DTYPES
        # The exporter knows torch's own operators only.
        or torch.onnx.is_in_onnx_export()
    )


def _needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd has to know of a call, in order to refuse forward mode too."""
    return forward_ad._current_level >= 0 or (
        torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in tensors)
    )


def _is_observed(*tensors: Tensor | None) -> bool:
    """Whether a call has to show as one of torch's operators, which costs time.

    It has to where something compiles, traces, transforms, counts or profiles them, and
    for what is no plain tensor in memory.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_in_torch_dispatch_mode()
        or torch._C._functorch.maybe_current_level() is not None
        or torch.autograd._profiler_enabled()
        or any(
            t is not None and (type(t) not in (Tensor, nn.Parameter) or not t.is_cpu)
            for t in tensors
        )
    )


# --------------------------------------------------------------- public operators


def _run(
    operator: str,
    x: Tensor,
    weight: Tensor,
    sharing_grid: Sequence[int] | None,
    bias: Tensor | None,
    backend: str | None,
) -> Tensor:
    selection.check(backend)
    x = _autocast(x)
    if _by_reference(x):
        weight = weight.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        if sharing_grid is not None:
            return reference.peripheral_conv2d(x, weight, sharing_grid, bias)
        return reference.depthwise_conv2d(x, weight, bias)
    if _is_observed(x, weight, bias):
        call = getattr(torch.ops.pelk_mm, operator)
    elif _needs_grad(x, weight, bias):
        call = _functions[operator].apply
    else:
        call = _forward_cpu
    return call(x, weight, sharing_grid, bias, backend)


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
        backend: 'direct', 'pixels', 'fft' or 'column_fft' (the compiled kernels: sums
            over planes or over channels_last maps, Fourier transforms, or transforms
            down and sums along), 'torch_fft', or 'channels_last' or 'nchw' (torch's
            convolution in either layout). By default what the environment variable
            `PELK_MM_CONV` says, else the expected fastest.

    Returns:
        Output of shape (N, C, H, W), channels_last where the input is, else contiguous.

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
    return _run('depthwise_conv2d', x, weight, None, bias, backend)


def peripheral_conv2d(
    x: Tensor,
    weight: Tensor,
    sharing_grid: Sequence[int],
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Peripheral convolution: K x K taps that share k' x k' parameters.

    On the CPU, in float32, bfloat16 and float16 (accumulated in float32), it runs on
    box sums, which cost k'^2 multiply-adds a pixel instead of K^2, or on Fourier
    transforms, plane by plane in the cache (PeLK, section 4.1;
    `docs/performance.md`). Elsewhere, and where the compiled kernels are missing, the
    expanded kernel serves.

    Args:
        x: Input of shape (N, C, H, W).
        weight: Shared parameters of shape (C, k', k').
        sharing_grid: Cell sizes along either axis, k' of them; their sum K, the
            kernel size, is odd.
        bias: Optional bias of shape (C,).
        backend: As for `depthwise_conv2d`; 'direct' is by box sums, and 'pixels' and
            torch's convolutions expand the kernel.

    Returns:
        Output of shape (N, C, H, W), channels_last where the input is, else contiguous.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit together, the grid is not
            made of positive integers with an odd sum, or the backend is unknown or
            missing.
    """
    _check(x, weight, bias)
    _check_grid(weight, sharing_grid)
    # Where nothing is shared there is nothing to sum before the products.
    grid = list(sharing_grid) if sum(sharing_grid) > len(sharing_grid) else None
    return _run('peripheral_conv2d', x, weight, grid, bias, backend)


# --------------------------------------------------------------- running on the CPU


def _taps(weight: Tensor, sharing_grid: list[int] | None) -> tuple[int, int]:
    """Size of the kernels that parameters stand for."""
    if sharing_grid is None:
        return weight.shape[1], weight.shape[2]
    taps = sum(sharing_grid)
    return taps, taps


def _reach(
    shape: torch.Size, weight: Tensor, sharing_grid: list[int] | None
) -> tuple[int, int]:
    """The taps of a kernel, each way, that some output pixel meets the map with."""
    rows, cols = _taps(weight, sharing_grid)
    return min(rows, max(1, 2 * shape[2] - 1)), min(cols, max(1, 2 * shape[3] - 1))


def _dense(
    weight: Tensor, sharing_grid: list[int] | None, kernel: tuple[int, int]
) -> Tensor:
    """The middle part `kernel` of the kernels that parameters stand for."""
    if sharing_grid is not None:
        weight = reference.expand_kernel(weight, sharing_grid)
    if weight.shape[1:] == kernel:
        return weight
    top, left = (weight.shape[1] - kernel[0]) // 2, (weight.shape[2] - kernel[1]) // 2
    return weight[:, top : top + kernel[0], left : left + kernel[1]]


def _share(grad: Tensor, weight: Tensor, sharing_grid: list[int] | None) -> Tensor:
    """The gradient to the parameters, of one to them or to what `_dense` returned."""
    if grad.shape == weight.shape:
        return grad
    rows, cols = _taps(weight, sharing_grid)
    top, left = (rows - grad.shape[1]) // 2, (cols - grad.shape[2]) // 2
    if top or left:
        grad = F.pad(grad, (left, left, top, top))
    return grad if sharing_grid is None else reference.box_sum(grad, sharing_grid)


def _cells(
    kernel: tuple[int, int], sharing_grid: list[int] | None
) -> tuple[Sequence[int], Sequence[int]]:
    """Cell sizes down and along a kernel."""
    if sharing_grid is None:
        return (1,) * kernel[0], (1,) * kernel[1]
    return sharing_grid, sharing_grid


def _lengths(
    backend: str, shape: torch.Size, kernel: tuple[int, int]
) -> tuple[int, int] | None:
    """Lengths of the transforms of a compiled backend."""
    if backend == 'direct':
        return None
    down, along = fft.lengths(shape, kernel)
    return down, along if backend == 'fft' else 0


def _is_channels_last(x: Tensor) -> bool:
    return memory_format(x) == torch.channels_last


def _without_autocast() -> contextlib.AbstractContextManager:
    """Turn autocast off where it is on; to turn it off always costs microseconds."""
    if torch.is_autocast_enabled('cpu'):
        return torch.autocast('cpu', enabled=False)
    return contextlib.nullcontext()


def _convolve(
    backend: str,
    x: Tensor,
    weight: Tensor,
    sharing_grid: list[int] | None,
    bias: Tensor | None,
) -> Tensor:
    kernel, layout = _reach(x.shape, weight, sharing_grid), memory_format(x)
    if backend == 'pixels':
        weight = _dense(weight, sharing_grid, kernel)
        out = kernels.convolve_pixels(x.float(), weight, bias)
        return kernels.in_format(out.to(x.dtype), layout)
    if backend in selection.COMPILED:
        if backend == 'direct':
            weight, sharing_grid = _dense(weight, sharing_grid, kernel), None
        elif sharing_grid is None:
            weight = _dense(weight, None, kernel)
        lengths = _lengths(backend, x.shape, kernel)
        out = kernels.convolve(x, weight, bias, *_cells(kernel, sharing_grid), lengths)
        return kernels.in_format(out, layout)
    if not x.numel():
        return torch.empty_like(x, memory_format=layout)
    wide, weight = x.float(), _dense(weight, sharing_grid, kernel).float()
    bias = None if bias is None else bias.float()
    if backend == 'torch_fft':
        out = fft.convolve(wide, weight)
        if bias is not None:
            out += bias[:, None, None]
    else:
        with _without_autocast():
            out = F.conv2d(
                wide.contiguous(memory_format=LAYOUTS[backend]),
                weight.unsqueeze(1),
                bias,
                padding=(kernel[0] // 2, kernel[1] // 2),
                groups=x.shape[1],
            )
    return out.to(x.dtype, memory_format=layout)


def _weight_grad(
    backend: str,
    x: Tensor,
    grad: Tensor,
    weight: Tensor,
    sharing_grid: list[int] | None,
) -> Tensor:
    kernel = _reach(x.shape, weight, sharing_grid)
    if backend == 'direct':
        result = kernels.weight_grad(x, grad, kernel)
        return _share(result, weight, sharing_grid)
    if backend == 'pixels':
        dense = kernels.weight_grad_pixels(x.float(), grad.float(), kernel)
        return _share(dense, weight, sharing_grid)
    if not x.numel():
        return torch.zeros(weight.shape, dtype=torch.float32)
    x, grad = x.float(), grad.float()
    if backend == 'torch_fft':
        dense = fft.weight_grad(x, grad, kernel)
    else:
        with _without_autocast():
            dense = torch.ops.aten.convolution_backward(
                grad.contiguous(memory_format=LAYOUTS[backend]),
                x.contiguous(memory_format=LAYOUTS[backend]),
                x.new_empty(x.shape[1], 1, *kernel),
                None,
                [1, 1],
                [kernel[0] // 2, kernel[1] // 2],
                [1, 1],
                False,
                [0, 0],
                x.shape[1],
                [False, True, False],
            )[1].squeeze(1)
    return _share(dense, weight, sharing_grid)


def _forward_cpu(
    x: Tensor,
    weight: Tensor,
    sharing_grid: list[int] | None,
    bias: Tensor | None,
    backend: str | None,
) -> Tensor:
    kernel = _reach(x.shape, weight, sharing_grid)
    problem = x.shape, kernel, sharing_grid, _is_channels_last(x)
    (chosen,) = selection.choose(backend, 'forward', *problem)
    return _convolve(chosen, x, weight, sharing_grid, bias)


def _backward_cpu(
    x: Tensor | None,
    grad: Tensor,
    weight: Tensor,
    sharing_grid: list[int] | None,
    needs_x: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Gradients to the input and, given the input, to the parameters.

    What is not wanted is empty.
    """
    kernel = _reach(grad.shape, weight, sharing_grid)
    problem = grad.shape, kernel, sharing_grid, _is_channels_last(grad)
    for_x = for_weight = None
    if needs_x and x is not None:
        for_x, for_weight = selection.choose(backend, 'both', *problem)
    elif needs_x:
        (for_x,) = selection.choose(backend, 'input', *problem)
    elif x is not None:
        (for_weight,) = selection.choose(backend, 'weight', *problem)
    grad_x, grad_weight = grad.new_empty(0), torch.empty(0, dtype=torch.float32)
    for method in selection.FOURIER:
        if method not in (for_x, for_weight):
            continue
        shared = weight if sharing_grid is not None else _dense(weight, None, kernel)
        by_fourier = kernels.fourier_gradients(
            x if for_weight == method else None,
            grad,
            shared if for_x == method else None,
            *_cells(kernel, sharing_grid),
            _lengths(method, grad.shape, kernel),
        )
        if for_x == method:
            grad_x = kernels.in_format(by_fourier[0], memory_format(grad))
        if for_weight == method:
            grad_weight = _share(by_fourier[1], weight, sharing_grid)
    if for_x not in (None, *selection.FOURIER):
        # The adjoint of a correlation is the correlation with the turned kernel.
        turned = sharing_grid and sharing_grid[::-1]
        grad_x = _convolve(for_x, grad, weight.flip(-2, -1), turned, None)
    if for_weight not in (None, *selection.FOURIER):
        grad_weight = _weight_grad(for_weight, x, grad, weight, sharing_grid)
    return grad_x, grad_weight


# -------------------------------------------------------------------- registration


_library = torch.library.Library('pelk_mm', 'DEF')
#: The same operators for torch's autograd alone, by name.
_functions: dict[str, type[torch.autograd.Function]] = {}


def _forward_fake(x, weight, sharing_grid, bias, backend) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _backward_fake(x, grad, weight, sharing_grid, needs_x, backend):
    grad_x = grad.new_empty(0)
    if needs_x:
        grad_x = torch.empty_like(grad, memory_format=memory_format(grad))
    grad_weight = 0 if x is None else weight.shape
    return grad_x, grad.new_empty(grad_weight, dtype=torch.float32)


def _forward_flops(x_shape, weight_shape, *args, **kwargs) -> int:
    return 2 * x_shape.numel() * weight_shape[1] * weight_shape[2]


def _backward_flops(
    x_shape, grad_shape, weight_shape, sharing_grid, needs_x, *args, **kwargs
) -> int:
    passes = int(needs_x) + (x_shape is not None)
    return passes * _forward_flops(grad_shape, weight_shape)


def _register(name: str) -> None:
    """Register an operator and the one that computes its gradients.

    Both are the same to torch for dense and for shared kernels; two names let FLOP
    counters and profilers tell them apart.
    """
    backward_name = f'{name}_backward'
    _library.define(
        f'{name}(Tensor x, Tensor weight, int[]? sharing_grid, Tensor? bias, '
        'str? backend) -> Tensor'
    )
    _library.define(
        f'{backward_name}(Tensor? x, Tensor grad, Tensor weight, '
        'int[]? sharing_grid, bool needs_x, str? backend) -> (Tensor, Tensor)'
    )
    _library.impl(name, _forward_cpu, 'CPU')
    _library.impl(backward_name, _backward_cpu, 'CPU')
    forward = getattr(torch.ops.pelk_mm, name)
    backward = getattr(torch.ops.pelk_mm, backward_name)

    def save(ctx, inputs, output) -> None:
        x, weight, ctx.sharing_grid, bias, ctx.backend = inputs
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype

    def run_and_save(ctx, *inputs) -> Tensor:
        # In one, as torch inspects the signature at every call where they are two.
        output = _forward_cpu(*inputs)
        save(ctx, inputs, output)
        return output

    def differentiate(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, _, needs_bias, _ = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if needs_x or needs_weight:
            shown = torch.is_grad_enabled() or _is_observed(x, grad, weight)
            grad_x, grad_weight = (backward if shown else _backward_cpu)(
                x, grad, weight, ctx.sharing_grid, needs_x, ctx.backend
            )
        if needs_bias:
            grad_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype)
        return (
            grad_x if needs_x else None,
            grad_weight.to(weight.dtype) if needs_weight else None,
            None,
            grad_bias,
            None,
        )

    def save_again(ctx, inputs, output) -> None:
        x, grad, weight, ctx.sharing_grid, ctx.needs_x, ctx.backend = inputs
        ctx.save_for_backward(x, grad, weight)

    def differentiate_again(ctx, outer_x: Tensor, outer_weight: Tensor):
        """Both gradients are bilinear: in grad and weight, and in x and grad."""
        x, grad, weight = ctx.saved_tensors
        settings = (ctx.sharing_grid, None, ctx.backend)
        from_x = ctx.needs_input_grad[0]
        from_weight = ctx.needs_input_grad[2] and ctx.needs_x
        grad_x = grad_grad = grad_weight = None
        if ctx.needs_input_grad[1]:
            terms = []
            if ctx.needs_x:
                terms.append(forward(outer_x, weight, *settings))
            if x is not None:
                terms.append(forward(x, outer_weight, *settings))
            grad_grad = sum(terms)
        if from_x or from_weight:
            grad_x, grad_weight = backward(
                outer_x if from_weight else None,
                grad,
                outer_weight if from_x else weight,
                ctx.sharing_grid,
                from_x,
                ctx.backend,
            )
        return (
            grad_x if from_x else None,
            grad_grad,
            grad_weight.to(weight.dtype) if from_weight else None,
            None,
            None,
            None,
        )

    for operator, fake, derivative, context, flops in (
        (name, _forward_fake, differentiate, save, _forward_flops),
        (
            backward_name,
            _backward_fake,
            differentiate_again,
            save_again,
            _backward_flops,
        ),
    ):
        qualified = f'pelk_mm::{operator}'
        torch.library.register_fake(qualified, fake)
        torch.library.register_autograd(qualified, derivative, setup_context=context)
        register_flop_formula(getattr(torch.ops.pelk_mm, operator))(flops)
    _functions[name] = type(
        name,
        (torch.autograd.Function,),
        {
            'forward': staticmethod(run_and_save),
            'backward': staticmethod(differentiate),
        },
    )


for _name in ('depthwise_conv2d', 'peripheral_conv2d'):
    _register(_name)
