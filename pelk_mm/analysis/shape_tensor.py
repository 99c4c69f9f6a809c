"""Tensors with a shape and no values, for counting what a model would compute.

torch's meta device has the same purpose, but everything on it loses its values. mm's
models also compute with small tensors that they read again: sizes of pyramid levels,
anchors, indices of positive samples. Here those stay real, on the CPU like the tensors
without values, and only what depends on weights or images has no values.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

aten: Any = torch.ops.aten

#: Operators that make a tensor of given values from the shape of another.
_CREATE = {
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
}
#: Elements up to which they make a real one.
_MAX_CREATED = 2**24
#: Operators whose boolean indices are selections.
_INDEX = {aten.index.Tensor, aten.index_put.default}


_unknown_is_one = ContextVar('unknown_is_one', default=False)


@contextmanager
def unknown_is_one() -> Iterator[None]:
    """Have a single number without value read as one, or True, not raise an error."""
    token = _unknown_is_one.set(True)
    try:
        yield
    finally:
        _unknown_is_one.reset(token)


class NeedsValuesError(RuntimeError):
    """An operator needs the values of a tensor that has none."""


def _on_meta(tensor: Tensor) -> Tensor:
    """A tensor's shape, strides and dtype on the meta device."""
    if isinstance(tensor, ShapeTensor):
        return tensor.meta
    return torch.empty_strided(
        tensor.size(), tensor.stride(), dtype=tensor.dtype, device='meta'
    )


def _integer_indices(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Replace real boolean indices by the integer ones that they stand for."""
    found: list[Tensor | None] = []
    for index in indices:
        selects = index is not None and index.dtype in (torch.bool, torch.uint8)
        if index is None or not selects:
            found.append(index)
        elif isinstance(index, ShapeTensor):
            raise NeedsValuesError('selecting by a computed mask needs its values')
        else:
            found.extend(index.nonzero().unbind(1))
    return found


class ShapeTensor(Tensor):
    """A tensor on the CPU that has a shape, strides and a dtype and no values.

    An operator with at least one argument of this class computes the shape of its
    result alone, and the result is of this class too. Exceptions are operators such as
    `torch.Tensor.new_zeros`, whose result is real, and changes in place, which leave a
    real tensor's values as they were. Operators that need values raise a
    `NeedsValuesError`.

    Attributes:
        meta: A tensor on the meta device, which has the shape.
    """

    meta: Tensor

    @staticmethod
    def __new__(cls, meta: Tensor) -> 'ShapeTensor':
        """Make a CPU tensor without storage of the shape of ``meta``."""
        tensor = Tensor._make_wrapper_subclass(
            cls,
            meta.size(),
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device=torch.device('cpu'),
        )
        tensor.meta = meta
        return tensor

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f'ShapeTensor({tuple(self.shape)}, {self.dtype})'

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Compute an operator's shapes."""
        kwargs = dict(kwargs or {})
        schema = func._schema
        if func is aten._local_scalar_dense.default and _unknown_is_one.get():
            return torch.ones((), dtype=args[0].dtype).item()
        if torch.Tag.data_dependent_output in func.tags or (
            torch.Tag.dynamic_output_shape in func.tags and func not in _INDEX
        ):
            raise NeedsValuesError(f'{schema.name} needs values, not shapes alone')
        if func in _CREATE and isinstance(args[0], ShapeTensor):
            return _create(func, args, kwargs)
        if schema.is_mutable:
            if torch.Tag.inplace_view in func.tags:
                _require_same_shape(func, args, kwargs)
            return kwargs.get('out', args[0])
        if func in _INDEX:
            args = (args[0], _integer_indices(args[1]), *args[2:])
        if 'device' in kwargs:
            kwargs['device'] = torch.device('meta')
        kwargs.pop('pin_memory', None)
        args, kwargs = tree_map_only(Tensor, _on_meta, (args, kwargs))
        return tree_map_only(Tensor, _without_values, func(*args, **kwargs))


def _require_same_shape(func: Any, args: tuple, kwargs: dict) -> None:
    """Refuse a change of shape in place; one of strides alone may be left undone."""
    copy = torch.empty_like(_on_meta(args[0]))
    if func(copy, *args[1:], **kwargs).shape != args[0].shape:
        raise NeedsValuesError(f'{func._schema.name} changes a shape in place')


def _create(func: Callable[..., Tensor], args: tuple, kwargs: dict) -> Tensor:
    """Make a real tensor of given values, or one without if it would be large."""
    kwargs.pop('pin_memory', None)
    kwargs.pop('device', None)
    shape = func(_on_meta(args[0]), *args[1:], **kwargs)
    if shape.numel() > _MAX_CREATED:
        return ShapeTensor(shape)
    model = torch.empty_strided(
        args[0].size(), args[0].stride(), dtype=args[0].dtype, device='cpu'
    )
    return func(model, *args[1:], **kwargs)


def _without_values(tensor: Tensor) -> Tensor:
    return ShapeTensor(tensor) if tensor.is_meta else tensor
