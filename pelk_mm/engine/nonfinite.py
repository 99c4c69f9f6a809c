"""Where in a model numbers stop being finite."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

#: How the clause about images begins.
BAD_IMAGE = 'the input image is not finite'


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Floating-point tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)


def is_finite(value: Any) -> bool:
    """Whether all numbers of the tensors in a value are finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors_in(value))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite, at one wait for the GPU instead of many.

    The largest magnitude is compared rather than a sum of squares, which overflows.
    """
    tensors = [tensor.detach() for tensor in tensors if tensor.numel()]
    if not tensors:
        return True
    return bool(
        torch.isfinite(torch.nn.utils.get_total_norm(tensors, norm_type=float('inf')))
    )


def bad_names(named: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """Names of those tensors that are not finite, in their order."""
    return [name for name, tensor in named if not is_finite(tensor)]


def describe_state(model: nn.Module) -> str | None:
    """The first parameter that is not finite, as a clause; None if all are."""
    bad = bad_names(model.named_parameters())
    total = sum(1 for _ in model.parameters())
    if not bad:
        return None
    return f'parameter {bad[0]} is not finite, the first of {len(bad)} of {total}'


def describe_gradients(model: nn.Module) -> str | None:
    """The parameters whose gradients are not finite, as a clause; None if all are.

    What goes wrong in a layer spreads backward to all before it. So the last of them is
    the one to look at.
    """
    params = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    bad = bad_names(params.items())
    if not bad:
        return None
    return (
        f'the gradients of {len(bad)} of {len(params)} parameters are not finite, the '
        f'first in the model is that of {bad[0]}, the last that of {bad[-1]}'
    )


def describe_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """The images of a batch that are not finite, as a clause; None if all are.

    Args:
        args: Positional arguments of the model.
        kwargs: The others, with the images under ``inputs``.
    """
    inputs = kwargs.get('inputs', args[0] if args else None)
    if is_finite(inputs):
        return None
    samples = kwargs.get('data_samples') or args[1:2] or ()
    samples = samples[0] if samples and isinstance(samples[0], list) else samples
    images = list(inputs) if isinstance(inputs, (Tensor, list, tuple)) else []
    bad = [index for index, image in enumerate(images) if not is_finite(image)]
    paths = [
        str(samples[index].get('img_path', ''))
        for index in bad
        if index < len(samples) and hasattr(samples[index], 'get')
    ]
    named = ', '.join(path for path in paths if path) or (
        f'number {", ".join(map(str, bad))} of its batch'
    )
    return f'{BAD_IMAGE}: {named}'


def first_bad_layer(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    """Run a batch again and find the first layer whose output is not finite.

    Where the layer's own input was not finite, something that is no module has made it
    so between two layers, and that is said. No statistic of a norm is changed, and on
    several processes none is exchanged: another may have stopped already. The losses
    are then not computed, since they wait for other processes too.

    Args:
        model: The segmenter or detector, without a distributed wrapper.
        args: Positional arguments of the model.
        kwargs: The others, with the ``mode`` of mmengine's models.

    Returns:
        A clause with the layer's name and class, or None if all outputs are finite.
    """
    alone = get_world_size() == 1
    found: list[str] = []
    names = {module: name for name, module in model.named_modules() if name}

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and not is_finite(output):
            place = 'output' if is_finite(inputs) else 'input'
            kind = type(module).__name__
            found.append(f'the {place} of {names[module]} ({kind}) is not finite')

    with ExitStack() as stack:
        for module in names:
            stack.callback(module.register_forward_hook(look).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_statistics_kept(model))
        model(*args, **{**kwargs, 'mode': 'loss' if alone else 'tensor'})
    return found[0] if found else None


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Leave BatchNorms to the statistics of the batch, recorded and shared nowhere."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [(norm, norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        # In evaluation a SyncBatchNorm asks nobody else, and a norm that has no
        # statistics of its own takes the batch's.
        norm.running_mean = norm.running_var = None
        norm.training = False
    try:
        yield
    finally:
        for norm, mean, var in kept:
            norm.running_mean, norm.running_var, norm.training = mean, var, True
