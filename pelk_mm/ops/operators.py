"""The operators as torch knows them: registration, shapes, gradients, FLOPs.

Each operator and the one that computes its gradients are registered for every device,
with fake kernels and gradients, so that torch.compile, FLOP counters, autocast and
activation checkpointing see one node each, and both can be differentiated again. What
computes them is for `choose` to say.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._torch_compat import is_watched
from .choose import by_backend, choose, leave_out
from .layout import memory_format
from .problem import Problem, accumulation_dtype

# ------------------------------------------------------------------ what is computed


def forward(
    x: Tensor,
    weight: Tensor,
    sharing_grid: list[int] | None,
    bias: Tensor | None,
    backend: str | None,
) -> Tensor:
    """Convolve on the backend chosen; see the public operators for the arguments.

    `weight` holds dense kernels where there is no `sharing_grid`. Channels that it has
    no kernels for pass unchanged.
    """
    if x.shape[1] != weight.shape[0]:
        return _forward_partial(x, weight, sharing_grid, bias, backend)
    problem = Problem.of(x, weight, sharing_grid)
    (chosen,) = choose(problem, ('forward',), backend)
    if not problem.plain and not x.numel():
        return _forward_fake(x)
    try:
        return chosen.forward(problem, x, weight, bias)
    except RuntimeError as error:
        leave_out(problem, ('forward',), backend, (chosen,), error)
    return forward(x, weight, sharing_grid, bias, backend)


def _forward_partial(
    x: Tensor,
    weight: Tensor,
    sharing_grid: list[int] | None,
    bias: Tensor | None,
    backend: str | None,
) -> Tensor:
    """Convolve the first channels into the place that they have in the result."""
    first = _first(x, weight)
    problem = Problem.of(first, weight, sharing_grid)
    (chosen,) = choose(problem, ('forward',), backend)
    if problem.plain:
        rest = x[:, weight.shape[0] :]
        return torch.cat((chosen.forward(problem, first, weight, bias), rest), dim=1)
    out = _copy_rest(x, weight)
    if first.numel():
        try:
            chosen.forward_into(problem, first, weight, bias, _first(out, weight))
        except RuntimeError as error:
            leave_out(problem, ('forward',), backend, (chosen,), error)
            return forward(x, weight, sharing_grid, bias, backend)
    return out


def _first(maps: Tensor, weight: Tensor) -> Tensor:
    """The channels that there are kernels for."""
    channels = weight.shape[0]
    return maps if maps.shape[1] == channels else maps[:, :channels]


def _copy_rest(maps: Tensor, weight: Tensor) -> Tensor:
    """A map that has the channels without kernels already, those before at will."""
    out = _forward_fake(maps)
    if maps.device.type == 'cpu':
        # One long copy takes less than a short one per pixel.
        return out.copy_(maps)
    channels = weight.shape[0]
    out[:, channels:].copy_(maps[:, channels:])
    return out


def backward(
    x: Tensor | None,
    grad: Tensor,
    weight: Tensor,
    sharing_grid: list[int] | None,
    needs_x: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients on the backends chosen.

    Args:
        x: The input, where the gradient to the weight is wanted.
        grad: Gradient to the output.
        weight: As for `forward`, as the other arguments are.
        sharing_grid: As there.
        needs_x: Whether the gradient to the input is wanted.
        backend: As there.

    Returns:
        Gradients to the input and to the weight; what is not wanted is empty.
    """
    if grad.shape[1] != weight.shape[0]:
        return _backward_partial(x, grad, weight, sharing_grid, needs_x, backend)
    problem = Problem.of(grad, weight, sharing_grid)
    passes = (*(('input',) * needs_x), *(('weight',) * (x is not None)))
    option = choose(problem, passes, backend)
    if not grad.numel():
        grad_x, grad_weight = _backward_fake(x, grad, weight, sharing_grid, needs_x)
        return grad_x, grad_weight.zero_()
    grad_x, grad_weight = _backward_fake(None, grad, weight, sharing_grid, False)
    try:
        for chosen, own in by_backend(passes, option):
            image = x if 'weight' in own else None
            found = chosen.backward(problem, image, grad, weight, 'input' in own)
            grad_x = grad_x if found[0] is None else found[0]
            grad_weight = grad_weight if found[1] is None else found[1].contiguous()
        return grad_x, grad_weight
    except RuntimeError as error:
        leave_out(problem, passes, backend, option, error)
    return backward(x, grad, weight, sharing_grid, needs_x, backend)


def _backward_partial(
    x: Tensor | None,
    grad: Tensor,
    weight: Tensor,
    sharing_grid: list[int] | None,
    needs_x: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `_forward_partial`."""
    first = _first(grad, weight)
    image = None if x is None else _first(x, weight)
    if not (needs_x and first.numel()):
        grads = backward(image, first, weight, sharing_grid, False, backend)
        return _copy_rest(grad, weight) if needs_x else grads[0], grads[1]
    problem = Problem.of(first, weight, sharing_grid)
    passes = ('input', *(('weight',) * (x is not None)))
    option = choose(problem, passes, backend)
    grad_x, grad_weight = _copy_rest(grad, weight), None
    try:
        for chosen, own in by_backend(passes, option):
            seen = image if 'weight' in own else None
            if 'input' in own:
                to = _first(grad_x, weight)
                found = chosen.backward_into(problem, seen, first, weight, to)
            else:
                _, found = chosen.backward(problem, seen, first, weight, False)
            grad_weight = grad_weight if found is None else found.contiguous()
    except RuntimeError as error:
        leave_out(problem, passes, backend, option, error)
        return backward(x, grad, weight, sharing_grid, needs_x, backend)
    if grad_weight is None:
        _, grad_weight = _backward_fake(None, grad, weight, sharing_grid, False)
    return grad_x, grad_weight


def _forward_fake(x: Tensor, *args: Any) -> Tensor:
    """What `forward` returns, without the values."""
    return torch.empty_like(x, memory_format=memory_format(x))


def _backward_fake(
    x: Tensor | None, grad: Tensor, weight: Tensor, grid: Any, needs_x: bool, *args: Any
) -> tuple[Tensor, Tensor]:
    """What `backward` returns, without the values."""
    grad_x = _forward_fake(grad) if needs_x else grad.new_empty(0)
    shape = (0,) if x is None else weight.shape
    return grad_x, grad.new_empty(shape, dtype=accumulation_dtype(grad.dtype))


def _forward_flops(
    x_shape: torch.Size, weight_shape: torch.Size, *args: Any, **kwargs: Any
) -> int:
    """FLOPs, two per multiply-add, of a product per parameter and pixel."""
    return 2 * x_shape[0] * x_shape[2] * x_shape[3] * weight_shape.numel()


def _backward_flops(
    x_shape: torch.Size | None,
    grad_shape: torch.Size,
    weight_shape: torch.Size,
    sharing_grid: list[int] | None,
    needs_x: bool,
    *args: Any,
    **kwargs: Any,
) -> int:
    passes = int(needs_x) + (x_shape is not None)
    return passes * _forward_flops(grad_shape, weight_shape)


# ------------------------------------------------------------------ registration

_library = torch.library.Library('pelk_mm', 'DEF')


class Operator:
    """A convolution as torch knows it.

    To torch it is the same for dense and for shared kernels; two names let FLOP
    counters and profilers tell them apart.

    Args:
        name: Of the operator. That of its gradients ends in ``_backward``.

    Attributes:
        dispatched: The operator of torch's dispatcher, called like `forward`.
        function: The same for torch's autograd alone, without the dispatcher.
    """

    def __init__(self, name: str) -> None:
        self.dispatched = self._define(
            f'{name}(Tensor x, Tensor weight, int[]? sharing_grid, Tensor? bias, '
            'str? backend) -> Tensor',
            forward,
            _forward_fake,
            self._differentiate,
            _save,
            _forward_flops,
        )
        self._dispatched_backward = self._define(
            f'{name}_backward(Tensor? x, Tensor grad, Tensor weight, '
            'int[]? sharing_grid, bool needs_x, str? backend) -> (Tensor, Tensor)',
            backward,
            _backward_fake,
            self._differentiate_backward,
            _save_backward,
            _backward_flops,
        )
        self.function: type[torch.autograd.Function] = type(
            name,
            (torch.autograd.Function,),
            {
                'forward': staticmethod(_run_and_save),
                'backward': staticmethod(self._differentiate),
            },
        )

    @staticmethod
    def _define(
        schema: str,
        run: Callable,
        fake: Callable,
        differentiate: Callable,
        save: Callable,
        flops: Callable,
    ) -> Callable:
        """Register an operator and all that torch asks of it."""
        name = schema.partition('(')[0]
        qualified = f'pelk_mm::{name}'
        _library.define(schema)
        _library.impl(name, run, 'CompositeExplicitAutograd')
        torch.library.register_fake(qualified, fake)
        torch.library.register_autograd(qualified, differentiate, setup_context=save)
        operator = getattr(torch.ops.pelk_mm, name)
        register_flop_formula(operator)(flops)
        return operator

    def _differentiate(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, _, needs_bias, _ = ctx.needs_input_grad
        grad_bias = None
        grads: tuple[Any, ...] = (None, None)
        if needs_x or needs_weight:
            watched = torch.is_grad_enabled() or is_watched() or grad.is_meta
            call = self._dispatched_backward if watched else backward
            grads = call(x, grad, weight, ctx.sharing_grid, needs_x, ctx.backend)
        if needs_bias:
            sums = _first(grad, weight).sum(
                (0, 2, 3), dtype=accumulation_dtype(grad.dtype)
            )
            grad_bias = sums.to(ctx.bias_dtype)
        return (
            grads[0] if needs_x else None,
            grads[1].to(weight.dtype) if needs_weight else None,
            None,
            grad_bias,
            None,
        )

    def _differentiate_backward(
        self, ctx: Any, outer_x: Tensor, outer_weight: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Both gradients are bilinear: in grad and weight, and in x and grad."""
        x, grad, weight = ctx.saved_tensors
        settings = (ctx.sharing_grid, None, ctx.backend)
        rest = grad.shape[1] - weight.shape[0]
        passed = None
        if rest:
            # The other channels of the input's gradient are those of grad.
            grad = _first(grad, weight)
            x = None if x is None else _first(x, weight)
            if ctx.needs_x:
                passed = outer_x[:, weight.shape[0] :]
                outer_x = _first(outer_x, weight)
        from_x = ctx.needs_input_grad[0]
        from_weight = ctx.needs_input_grad[2] and ctx.needs_x
        grad_grad = None
        grads: tuple[Any, ...] = (None, None)
        if ctx.needs_input_grad[1]:
            terms = []
            if ctx.needs_x:
                terms.append(self.dispatched(outer_x, weight, *settings))
            if x is not None:
                terms.append(self.dispatched(x, outer_weight, *settings))
            grad_grad = sum(terms)
            if passed is not None:
                grad_grad = torch.cat((grad_grad, passed), dim=1)
            elif rest:
                grad_grad = F.pad(grad_grad, (0, 0, 0, 0, 0, rest))
        if from_x or from_weight:
            grads = self._dispatched_backward(
                outer_x if from_weight else None,
                grad,
                outer_weight if from_x else weight,
                ctx.sharing_grid,
                from_x,
                ctx.backend,
            )
        grad_x = grads[0]
        if from_x and rest:
            grad_x = F.pad(grad_x, (0, 0, 0, 0, 0, rest))
        return (
            grad_x if from_x else None,
            grad_grad,
            grads[1].to(weight.dtype) if from_weight else None,
            None,
            None,
            None,
        )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.sharing_grid, bias, ctx.backend = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _run_and_save(ctx: Any, *inputs: Any) -> Tensor:
    # In one, as torch inspects the signature at every call where they are two.
    output = forward(*inputs)
    _save(ctx, inputs, output)
    return output


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, grad, weight, ctx.sharing_grid, ctx.needs_x, ctx.backend = inputs
    ctx.save_for_backward(x, grad, weight)


depthwise_conv2d = Operator('depthwise_conv2d')
peripheral_conv2d = Operator('peripheral_conv2d')
