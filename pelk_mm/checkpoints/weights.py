"""Which tensors of a loaded checkpoint are the weights, and whether they are sound."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .files import CheckpointError, Track, untracked

#: Where files keep their weights, in order of preference; those without any of these
#: are weights only.
WRAPPERS = ('state_dict', 'model', 'model_ema')

#: Number types that weights are kept in.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: Why entries other than the weights are dropped.
_TRAINING = 'what a training run keeps in addition to the weights'
_OTHER_WEIGHTS = 'the other weights; --ema chooses between the two'


class Source(NamedTuple):
    """The weights of a checkpoint file.

    Attributes:
        key: The entry that held them; None where the file is a bare state dict.
        tensors: The weights by full name.
        meta: The checkpoint's own notes.
        dropped: Other entries of the file and why they are not used.
    """

    key: str | None
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    dropped: dict[str, str]


def find_weights(
    content: Any, wrappers: Sequence[str] = WRAPPERS
) -> tuple[str | None, Mapping[Any, Any]]:
    """Where the weights are in a loaded checkpoint.

    Args:
        content: What the file held.
        wrappers: Entries that may hold them, in order of preference.

    Returns:
        Which of these has them, None if they are the content itself, and the weights,
        unchecked.

    Raises:
        CheckpointError: If the content can hold no weights.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f'it holds a {type(content).__name__}, not weights')
    for key in wrappers:
        if isinstance(content.get(key), Mapping):
            return key, content[key]
    return None, content


def select_weights(content: Any, ema: bool = False) -> Source:
    """Find the weights in a loaded checkpoint and check that they are tensors by name.

    Args:
        content: What the file held.
        ema: Whether to take the averaged weights.

    Raises:
        CheckpointError: If there are no weights, or something else among them.
    """
    key, tensors = find_weights(content, ('model_ema',) if ema else WRAPPERS)
    if ema and key is None:
        raise CheckpointError('it has no model_ema; leave out --ema')
    if key == 'model_ema' and not ema:
        raise CheckpointError('it has averaged weights only; give --ema to take them')
    if not tensors:
        raise CheckpointError(f'its {key or "state dict"} is empty')
    for name, value in tensors.items():
        # A name is printed; one with control characters could steer the terminal.
        if not isinstance(name, str) or not name.isprintable():
            raise CheckpointError(
                f'it has a tensor under {name!r}, which is not a name'
            )
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f'its {key or "top level"} holds {name!r} of type '
                f'{type(value).__name__} where weights have tensors by name'
            )
    meta = content.get('meta')
    dropped = {}
    for name in (str(name) for name in content if key is not None):
        if name not in (key, 'meta'):
            shown = name if name.isprintable() else ascii(name)
            dropped[shown] = _OTHER_WEIGHTS if name in WRAPPERS else _TRAINING
    return Source(key, dict(tensors), meta if isinstance(meta, dict) else {}, dropped)


def check_tensors(tensors: Mapping[str, Tensor], track: Track = untracked) -> None:
    """Check that tensors are ordinary, in memory, and finite.

    Raises:
        CheckpointError: If one is not.
    """
    infinite = []
    for name, tensor in track(tensors.items(), 'checking', len(tensors)):
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise CheckpointError(f'{name} is a sparse or quantized tensor')
        if tensor.device.type != 'cpu':
            raise CheckpointError(f'{name} is a tensor without values')
        # A few bytes can pretend to be any number of values, all the same.
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(f'{name} repeats one value instead of holding all')
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
