"""Training in bfloat16, on the CPU too."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner.amp import autocast
from mmengine.utils import apply_to
from torch import Tensor, nn

from pelk_mm.processor import multiplies_bfloat16

#: Name of the optimizer wrapper that the tools' ``--amp`` and configs ask for.
AMP = 'AmpOptimWrapper'

#: What heads of mmseg and mmdet compute from their predictions: losses with the
#: targets, proposals, and the boxes of the next stage of a cascade.
METHODS = ('loss_by_feat', 'loss_and_target', 'predict_by_feat', 'refine_bboxes')


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """Train in bfloat16 where autocast allows it, with weights and losses in float32.

    Convolutions and matrix products compute in bfloat16. Weights, gradients and the
    optimizer's state stay in float32, so gradient clipping, EMA, sparsity and
    checkpoints are those of a training in float32. bfloat16 has float32's range:
    losses need no scaling, and no step is skipped.

    autocast on the CPU would compute most losses in bfloat16, and mmcv's compiled
    operators refuse it. So these run in float32, with their inputs converted: modules
    whose name begins with ``loss``; the methods of heads that turn predictions into
    losses, proposals and boxes (`METHODS`); RoI extractors; and mmcv's operators.

    Where mmengine finds no GPU, this class takes the place of its ``AmpOptimWrapper``,
    which refuses to run there: for ``--amp``, and in configs that name it. It can be
    named itself too, and then also runs on a GPU.

    Args:
        loss_scale: ``dynamic``, a number or a dict, as ``AmpOptimWrapper`` takes them.
            It has no effect.
        dtype: ``bfloat16`` or ``torch.bfloat16``, or None, which means the same.
        use_fsdp: As ``AmpOptimWrapper`` has it, to choose a scaler; without effect.
        **kwargs: As for mmengine's ``OptimWrapper``.

    Raises:
        ValueError: If ``dtype`` is another one.
        TypeError: If ``loss_scale`` is nothing that ``AmpOptimWrapper`` takes.
    """

    def __init__(
        self,
        loss_scale: str | float | dict[str, Any] = 'dynamic',
        dtype: str | torch.dtype | None = None,
        use_fsdp: bool = False,
        **kwargs: Any,
    ) -> None:
        if dtype not in (None, 'bfloat16', torch.bfloat16):
            raise ValueError(
                f'dtype {dtype!r} cannot be trained in without a GPU or by '
                f'{type(self).__name__}; set optim_wrapper.dtype=bfloat16'
            )
        if loss_scale != 'dynamic' and not isinstance(loss_scale, (float, dict)):
            raise TypeError(
                f"loss_scale {loss_scale!r} is not 'dynamic', a float or a dict; leave "
                'it out: bfloat16 needs none'
            )
        super().__init__(**kwargs)
        self._functions: list[tuple[nn.Module, str]] = []
        if get_device() == 'cpu' and multiplies_bfloat16() is False:
            print_log(
                'This processor has no instructions for bfloat16; training in it '
                'takes longer than in float32.',
                logger='current',
                level=logging.WARNING,
            )

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Compute in bfloat16, except for what needs float32.

        Args:
            model: The model whose forward pass is to come.
        """
        self._functions = list(_find_functions(model))
        with (
            super().optim_context(model),
            autocast(dtype=torch.bfloat16),
            _in_float32(self._functions),
        ):
            yield

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Compute the gradients; what ``with_cp`` runs again, as the first time.

        Args:
            loss: The loss.
            **kwargs: As for ``Tensor.backward``.
        """
        with _in_float32(self._functions):
            super().backward(loss, **kwargs)


def _find_functions(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Find what has to run in float32: modules, and names of their methods."""
    for name, module in model.named_modules():
        if (
            any(part.startswith('loss') for part in name.split('.'))
            or hasattr(module, 'roi_layers')  # mmdet's RoI extractors
            or any(
                kind.__module__.startswith('mmcv.ops') for kind in type(module).mro()
            )
        ):
            yield module, 'forward'
        for method in METHODS:
            if hasattr(module, method):
                yield module, method


@contextmanager
def _in_float32(functions: list[tuple[nn.Module, str]]) -> Iterator[None]:
    """Have methods of modules compute in float32.

    Not for longer than the context: a copy of a module, as EMA makes one, would have
    the methods of the module that it was copied from.
    """
    kept = [(module, name, vars(module).get(name)) for module, name in functions]
    for module, name in functions:
        setattr(module, name, _with_float32(getattr(module, name)))
    try:
        yield
    finally:
        for module, name, before in reversed(kept):
            delattr(module, name)
            if before is not None:
                setattr(module, name, before)


def _with_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Convert the 16-bit tensors among a function's arguments, and stop autocast."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = apply_to((args, kwargs), _is_half, Tensor.float)
        with autocast(enabled=False):
            return function(*args, **kwargs)

    return call


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)


def register_amp(device: str) -> None:
    """Have ``AmpOptimWrapper`` mean ours where mmengine's refuses to run.

    Args:
        device: Type of the device that mmengine trains on.
    """
    if device == 'cpu':
        OPTIM_WRAPPERS.register_module(
            name=AMP, module=Bfloat16OptimWrapper, force=True
        )


register_amp(get_device())
