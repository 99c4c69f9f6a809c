"""How much a loaded checkpoint may claim to hold, measured by its file."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import CheckpointError

#: What a file may stand for: a multiple of its size, and a constant.
TIMES, MARGIN = 4, 64 << 20
#: The same of numbers, strings and containers; each takes a byte at least.
MARGIN_ENTRIES = 100_000
#: How deep containers may lie in each other.
MAX_DEPTH = 64

#: What is one entry of its container, and most of what long containers hold.
_SINGLE = frozenset({str, int, float, bool, type(None)})


def allowance(size: int) -> int:
    """Bytes that a file of a size may stand for."""
    return TIMES * size + MARGIN


def require_bounded(content: Any, size: int) -> None:
    """Raise an error if a loaded file stands for far more than it holds.

    A few bytes can pretend to be a tensor of any size, all of one value, or a list of
    the same list again and again, and whoever copies them runs out of memory. A
    container inside itself never ends.

    Args:
        content: What was loaded.
        size: Bytes of the file.

    Raises:
        CheckpointError: If it does.
    """
    entries, claimed = _measure(content)
    if claimed > allowance(size):
        raise CheckpointError(
            f'repeats values instead of holding all: its tensors are {claimed:,} '
            f'bytes, the file {size:,}; save it again with .clone() of each tensor'
        )
    if entries > TIMES * size + MARGIN_ENTRIES:
        raise CheckpointError(
            f'repeats containers instead of holding all: they have {entries:,} '
            f'entries, the file {size:,} bytes; save the weights alone'
        )


def _measure(content: Any) -> tuple[int, int]:
    """Entries and bytes of nested containers, what they share counted each time."""
    known: dict[int, tuple[int, int]] = {}
    open_ids: set[int] = set()
    todo: list[tuple[Any, bool]] = [(content, False)]
    while todo:
        node, entered = todo.pop()
        key = id(node)
        parts = list(_parts(node))
        if entered:
            open_ids.discard(key)
            counts = [known.get(id(part), (1, 0)) for part in parts]
            known[key] = (
                1 + sum(count for count, _ in counts),
                sum(claimed for _, claimed in counts),
            )
        elif isinstance(node, (Tensor, np.ndarray)):
            known[key] = (1, _bytes(node))
        elif parts and key not in known:
            if key in open_ids:
                raise CheckpointError(
                    'has a container that contains itself; save the weights alone'
                )
            if len(open_ids) >= MAX_DEPTH:
                raise CheckpointError(
                    f'nests containers deeper than {MAX_DEPTH}; save the weights alone'
                )
            open_ids.add(key)
            todo.append((node, True))
            todo += [(part, False) for part in parts if type(part) not in _SINGLE]
    return known.get(id(content), (1, 0))


def _parts(node: Any) -> Iterable[Any]:
    """What a container contains."""
    if isinstance(node, Mapping):
        return node.values()
    if isinstance(node, (list, tuple, set, frozenset)):
        return node
    if isinstance(node, np.ndarray) and node.dtype == object:
        return node.flat
    return ()


def _bytes(array: Tensor | np.ndarray) -> int:
    """Bytes of all values, also of those that are not stored one by one."""
    if isinstance(array, np.ndarray):
        return array.nbytes
    if array.layout is torch.strided:
        return array.numel() * array.element_size()
    count = 1
    for length in array.shape:  # numel() of a sparse tensor may overflow
        count *= length
    return count * array.element_size()
