"""Which tensors of a loaded checkpoint are the weights, and whether they are sound."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .files import CheckpointError, Track, untracked

#: Where files keep averaged weights: the authors', timm's, BasicSR's.
AVERAGED = ('model_ema', 'state_dict_ema', 'params_ema')

#: Where files keep their weights, in order of preference; those without any of these
#: are weights only, or have them under names of their own.
WRAPPERS = (
    'state_dict',
    'model',
    'model_state_dict',
    'model_state',
    'network',
    'net',
    'params',
    'weights',
    *AVERAGED,
)

#: Where mmengine's EMAHook leaves the weights that it has not averaged: when it saves,
#: it swaps them with those of ``state_dict``.
NOT_AVERAGED = 'ema_state_dict'

#: Number types that weights are kept in.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: How deep weights may lie in a file.
_MAX_DEPTH = 4

#: Why entries other than the weights are dropped.
_TRAINING = 'what a training run keeps in addition to the weights'
_OTHER_WEIGHTS = 'the other weights; --ema chooses between the two'
_SWAPPED = {
    'state_dict': 'the averaged weights; leave out --no-ema to take them',
    NOT_AVERAGED: 'the weights without averaging; state_dict has the averaged ones, '
    "since mmengine's EMAHook swaps the two when it saves; --no-ema takes these",
}

#: What weights may be.
_ARRAYS = (Tensor, np.ndarray, np.generic)


class Source(NamedTuple):
    """The weights of a checkpoint file.

    Attributes:
        key: The entry that held them, entries inside entries joined by dots; None where
            the file is a bare state dict.
        tensors: The weights by full name.
        meta: The checkpoint's own notes.
        dropped: Other entries of the file and why they are not used.
    """

    key: str | None
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    dropped: dict[str, str]


def printable(name: Any) -> str:
    """A name to print: one with control characters could steer the terminal."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def find_weights(
    content: Any, wrappers: Sequence[str] = WRAPPERS
) -> tuple[str | None, Mapping[Any, Any]]:
    """Where the weights are in a loaded checkpoint.

    Args:
        content: What the file held.
        wrappers: Entries that may hold them, in order of preference, or hold such
            entries themselves.

    Returns:
        Which of these has them, None if they are the content itself, and the weights,
        unchecked.

    Raises:
        CheckpointError: If the content can hold no weights.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f'it holds a {type(content).__name__}, not weights')
    path: list[str] = []
    while len(path) < _MAX_DEPTH:
        key = next((k for k in wrappers if isinstance(content.get(k), Mapping)), None)
        if key is None:
            break
        path.append(key)
        content = content[key]
    return '.'.join(path) or None, content


def select_weights(content: Any, ema: bool | None = None) -> Source:
    """Find the weights in a loaded checkpoint and check that they are tensors by name.

    Weights in several entries are one state dict with longer names: ``teacher`` with an
    ``a.weight`` has ``teacher.a.weight``. Arrays become tensors.

    Args:
        content: What the file held.
        ema: Whether to take the averaged weights, or those without averaging; None for
            the authors' without and mmengine's with, its ``state_dict``.

    Raises:
        CheckpointError: If there are no weights, or something else among them.
    """
    swapped = isinstance(content, Mapping) and all(
        isinstance(content.get(name), Mapping) for name in _SWAPPED
    )
    key, found = find_weights(content, AVERAGED if ema and not swapped else WRAPPERS)
    if ema and key is None:
        raise CheckpointError(f'it has no {AVERAGED[0]}; leave out --ema')
    if key in AVERAGED and not ema:
        raise CheckpointError('it has averaged weights only; give --ema to take them')
    if not found:
        raise CheckpointError(f'its {key or "state dict"} is empty')
    tensors, left = _tensors_by_name(found, key or 'top level')
    if key is not None:
        first = key.partition('.')[0]
        left = [*left, *(name for name in content if name != first)]
    if swapped and ema is False:
        averaged, (others, _) = (
            tensors,
            _tensors_by_name(content[NOT_AVERAGED], NOT_AVERAGED),
        )
        tensors = {n: others.get(f'module.{n}', t) for n, t in averaged.items()}
        key, left = NOT_AVERAGED, [n for n in content if n != NOT_AVERAGED]
    dropped = {}
    for name in (str(name) for name in left if name != 'meta'):
        reason = _OTHER_WEIGHTS if name in WRAPPERS else _TRAINING
        if swapped and name in _SWAPPED:
            reason = _SWAPPED[name]
        dropped[printable(name)] = reason
    meta = content.get('meta')
    return Source(key, tensors, meta if isinstance(meta, dict) else {}, dropped)


def _tensors_by_name(
    found: Mapping[Any, Any], where: str
) -> tuple[dict[str, Tensor], list[Any]]:
    """Tensors of a mapping by name, and the entries that have none.

    Raises:
        CheckpointError: If there is something else among them.
    """
    entries: Mapping[Any, Any] = found
    left: list[Any] = []
    if not any(isinstance(value, _ARRAYS) for value in found.values()):
        parts = {n: _nested(v) for n, v in found.items() if n != 'meta'}
        if any(parts.values()):
            left = [name for name in found if not parts.get(name)]
            entries = {f'{n}.{m}': t for n, part in parts.items() for m, t in part}
    tensors = {}
    for name, value in entries.items():
        # A name is printed; one with control characters could steer the terminal.
        if not isinstance(name, str) or not name.isprintable():
            raise CheckpointError(
                f'it has a tensor under {name!r}, which is not a name'
            )
        if not isinstance(value, _ARRAYS):
            raise CheckpointError(
                f'its {where} holds {name!r} of type {type(value).__name__} where '
                'weights have tensors by name'
            )
        tensors[name] = _as_tensor(name, value)
    return tensors, left


def _nested(value: Any, depth: int = 1) -> list[tuple[str, Any]]:
    """Tensors and arrays of a mapping inside another, by names joined by dots."""
    if not isinstance(value, Mapping) or depth == _MAX_DEPTH:
        return []
    found = []
    for name, part in value.items():
        if isinstance(name, str) and isinstance(part, _ARRAYS):
            found.append((name, part))
        elif isinstance(name, str):
            found += [(f'{name}.{end}', t) for end, t in _nested(part, depth + 1)]
    return found


def _as_tensor(name: str, value: Any) -> Tensor:
    """A tensor as it is; an array of numbers as a tensor.

    Raises:
        CheckpointError: If it is an array of anything else.
    """
    if isinstance(value, Tensor):
        return value
    array = np.array(value)  # a copy: arrays of a file may be read-only
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder('='), copy=False))
    except TypeError as error:
        raise CheckpointError(
            f'{name} is an array of {array.dtype}; weights are floating-point numbers'
        ) from error


def require_ordinary(tensors: Mapping[Any, Any]) -> None:
    """Check that values are tensors with each of their values in memory.

    Raises:
        CheckpointError: If one is not.
    """
    for name, tensor in tensors.items():
        shown = printable(name)
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f'{shown} is a {type(tensor).__name__} where weights have a tensor'
            )
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise CheckpointError(f'{shown} is a sparse or quantized tensor')
        if tensor.device.type != 'cpu':
            raise CheckpointError(f'{shown} is a tensor without values')
        # A few bytes can pretend to be any number of values, all the same.
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(f'{shown} repeats one value instead of holding all')


def check_tensors(tensors: Mapping[str, Tensor], track: Track = untracked) -> None:
    """Check that tensors are ordinary, in memory, and finite.

    Raises:
        CheckpointError: If one is not.
    """
    infinite = []
    for name, tensor in track(tensors.items(), 'checking', len(tensors)):
        require_ordinary({name: tensor})
        if name.endswith('num_batches_tracked'):
            continue
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f'{name} is of {tensor.dtype}; weights are floating-point numbers'
            )
        # The extremes pass NaN on, without a temporary of the tensor's size.
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            infinite.append(name)
    if infinite:
        raise CheckpointError(
            f'{len(infinite)} of its tensors hold NaN or infinity (first: '
            f'{infinite[0]}), as after a training that diverged; use an earlier one'
        )
