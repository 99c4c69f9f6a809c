"""The form in which a model predicts fastest: `prepare_for_inference`."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from mmcv.cnn import Conv2d, Linear
from mmengine.model import BaseModel, is_model_wrapper
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pelk_mm.backbones import LargeKernelBackbone
from pelk_mm.layers import pack_pointwise
from pelk_mm.ops.problem import dtype_name

from .deploy import deploy_backbones
from .fold import fold_conv_modules

#: Data types that a model may be prepared for, by name.
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
#: Layers whose weights are kept in the data type that autocast would round them to.
_ROUNDED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, Conv2d, Linear)

Model = TypeVar('Model', bound=nn.Module)


class Prepared(NamedTuple):
    """How a model was prepared.

    Attributes:
        dtype: Data type that its convolutions and products compute in.
        compiled: Whether its backbones are compiled.
    """

    dtype: torch.dtype
    compiled: bool

    def __str__(self) -> str:
        """The data type, and whether it is compiled."""
        name = dtype_name(self.dtype)
        return f'{name}, compiled' if self.compiled else name


class _Frozen:
    """Comes before the class of a prepared module, which cannot train any more."""

    prepared: Prepared

    def train(self, mode: bool = True) -> Any:
        """Refuse the training mode."""
        if mode:
            raise RuntimeError(
                f'this {type(self).__name__} is prepared for inference: its norms are '
                'folded and its weights frozen. Build the model anew to train it'
            )
        return super().train(False)  # type: ignore[misc]


class _Part(_Frozen):
    """Comes before the class of a backbone, neck or head that is prepared."""

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """The data type of the computation, without gradients.

        Without bfloat16 an autocast around the model is turned off as well: weights may
        be packed for one data type.
        """
        dtype = self.prepared.dtype
        device = next(self.parameters()).device.type  # type: ignore[attr-defined]
        low = dtype is not torch.float32
        with torch.no_grad(), torch.autocast(device, dtype if low else None, low):
            yield

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module, compiled or not; `forward` is called by itself too."""
        with self._settings():
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute in the prepared data type; what is returned is contiguous float32.

        Operators of mmcv such as RoIAlign read channels_last as if it were contiguous.
        """
        if torch.compiler.is_compiling():  # within `__call__`, whose settings hold
            outputs = super().forward(*args, **kwargs)  # type: ignore[misc]
        else:
            with self._settings():
                outputs = super().forward(*args, **kwargs)  # type: ignore[misc]
        return tree_map_only(Tensor, _hand_out, outputs)


def prepare_for_inference(
    model: Model, dtype: torch.dtype | str = torch.float32, *, compile: bool = False
) -> Model:
    """Bring a model into the form in which it predicts fastest, in place.

    Backbones get their deployment form, BatchNorms of necks and heads are folded into
    their convolutions, parameters are frozen and laid out channels last, and weights of
    pointwise layers packed (`pack_pointwise`: as many bytes again). The object
    stays what it was: mm's inferencers, ``inference_model``, ``inference_detector`` and
    ``test_step`` take it as before, and the data preprocessor is untouched. Images may
    have any layout. A second call with the same arguments does nothing.

    In float32 outputs are those of the model before to about 1e-6 of their largest
    value. With ``bfloat16`` convolutions and products round their operands to 8 bits,
    as ``torch.autocast`` does, but weights once and not at every call; sums, norms and
    everything that heads return are float32. Outputs then stay within 5 % of their
    largest value. Where the processor has no instructions for bfloat16 that is slower
    than float32.

    Its state dict is of this form alone; save what it was made from.

    Args:
        model: A backbone of this package, or a segmenter of mmseg, a detector of mmdet
            or any other module that contains one.
        dtype: ``torch.float32`` or ``torch.bfloat16``, or its name.
        compile: Whether backbones are compiled by ``torch.compile`` with frozen
            weights, at their first call: once for the first size of images and once
            for all others.

    Returns:
        The model.

    Raises:
        TypeError: If it is no module, or contains no backbone of this package.
        ValueError: If ``dtype`` is another, or the model was prepared otherwise before.
        RuntimeError: If it is being trained, or a norm of a backbone cannot be folded;
            nothing is changed then.
    """
    wanted = Prepared(_require_dtype(dtype), bool(compile))
    _require_model(model)
    if isinstance(model, _Frozen) and model.prepared == wanted:
        return model
    _require_untouched(model)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        deploy_backbones(model)
    except RuntimeError:
        for module in training:
            module.training = True
        raise
    fold_conv_modules(model)
    frozen: Any = model.requires_grad_(False)
    frozen.to(memory_format=torch.channels_last)
    if wanted.dtype is not torch.float32:
        _round_weights(model, wanted.dtype)
    for part in list(_parts(model)):
        _mark(part, _Part, wanted)
    for module in list(model.modules()):
        # A model for augmented tests has the model itself in it.
        whole = module is model or isinstance(module, BaseModel)
        if whole and not isinstance(module, _Frozen):
            _mark(module, _Frozen, wanted)
    pack_pointwise(model, wanted.dtype)
    if compile:
        for backbone in model.modules():
            if isinstance(backbone, LargeKernelBackbone):
                backbone.compile(options={'freezing': True})
    return model


def _require_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Find a data type by itself or its name."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise ValueError(
            f'dtype {dtype!r} is not one that models are prepared for; choose '
            f'{" or ".join(DTYPES)}'
        )
    return found


def _require_model(model: Any) -> None:
    """Raise a `TypeError` if nothing of a model is ours."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        inner = getattr(model, 'model', None)
        hint = f'; give the {kind}.model' if isinstance(inner, nn.Module) else ''
        raise TypeError(f'{kind} is no torch module and cannot be prepared{hint}')
    if is_model_wrapper(model):
        raise TypeError(f'{kind} wraps a model for training; give its .module')
    if not any(isinstance(each, LargeKernelBackbone) for each in model.modules()):
        backbone = type(getattr(model, 'backbone', None)).__name__
        what = 'has none' if backbone == 'NoneType' else f'has {backbone}'
        raise TypeError(
            'only models with a backbone of this package (PeLK, SLaK, RepLKNet) are '
            f'prepared for inference, and this {kind} {what}'
        )


def _require_untouched(model: nn.Module) -> None:
    """Raise an error if a model has been prepared before, or is being trained."""
    kind = type(model).__name__
    for name, module in model.named_modules():
        if isinstance(module, _Frozen):
            what = f'{name} of this {kind}' if name else f'this {kind}'
            raise ValueError(
                f'{what} is prepared already, for {module.prepared}; build the model '
                'anew and prepare the whole of it once'
            )
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            raise RuntimeError(
                f'{name} has a gradient, so this {kind} is being trained; '
                'model.zero_grad() drops gradients, and copy.deepcopy(model) may be '
                'prepared while the model goes on training'
            )


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """Backbones, necks and heads: what a model calls, each as a whole."""
    found: dict[nn.Module, None] = {}
    backbones = (m for m in model.modules() if isinstance(m, LargeKernelBackbone))
    found.update(dict.fromkeys(backbones))
    if not isinstance(model, LargeKernelBackbone):
        found.update(dict.fromkeys(_called(model)))
    # Without parameters: losses, data preprocessors.
    return (part for part in found if next(part.parameters(), None) is not None)


def _called(model: nn.Module) -> Iterator[nn.Module]:
    """What a model calls of its children, and of those that only hold others."""
    for child in model.children():
        names = {base.__name__ for base in type(child).__mro__}
        # The second stage of a detector calls its heads one by one.
        if names & {'ModuleList', 'ModuleDict', 'BaseRoIHead'} or isinstance(
            child, BaseModel
        ):
            yield from _called(child)
        else:
            yield child


def _mark(module: nn.Module, mixin: Any, prepared: Prepared) -> None:
    """Put a class before that of a module, which keeps its name."""
    kind: Any = type(module)
    module.__class__ = _derive(mixin, kind)
    module.prepared = prepared  # type: ignore[assignment]


@functools.lru_cache(maxsize=256)
def _derive(mixin: Any, cls: Any) -> type:
    return type(cls.__name__, (mixin, cls), {'__module__': cls.__module__})


def _round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Round the weights that autocast would round at every call."""
    ours: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, LargeKernelBackbone):
            ours.update(module.modules())
    for module in model.modules():
        if isinstance(module, _ROUNDED) if module in ours else type(module) in _ROUNDED:
            module.to(dtype)
            if module not in ours:
                # Some detectors call layers of their heads by themselves.
                module.register_forward_pre_hook(_round_inputs)


def _round_inputs(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tree_map_only(Tensor, lambda x: x.to(module.weight.dtype), args)


def _hand_out(x: Tensor) -> Tensor:
    return (x.float() if x.dtype is torch.bfloat16 else x).contiguous()
