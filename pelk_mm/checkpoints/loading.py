"""Loading files of ``torch.save`` and safetensors without running what they carry.

PyTorch 2.6 made ``torch.load`` refuse everything but tensors and plain containers,
and mmengine's own training checkpoints hold more than that: the buffers of its log
and numpy numbers. Exactly those types are accepted, anything else is refused by name.
"""

import codecs
import json
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import _weights_only_unpickler as unpickler
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals


def _history_statistic(owner: type, name: str) -> Any:
    """Replace ``getattr``, which pickles of a HistoryBuffer call.

    They need it to name the buffer's own statistics, and it does nothing else: the
    real one would give a crafted file any attribute of any object.
    """
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'getattr of {name!r} on {owner!r} is not allowed')


def _numpy_types() -> list[Any]:
    """Types and functions in pickles of numpy numbers and arrays, of numpy 1 and 2."""
    rebuild = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    numbers = (np.bool_, np.number)
    return [
        np.ndarray,
        np.dtype,
        *{type(np.dtype(n)) for n in np.sctypeDict.values() if issubclass(n, numbers)},
        *(
            (function, f'{module}.multiarray.{name}')
            for module in ('numpy.core', 'numpy._core')
            for function, name in ((rebuild, '_reconstruct'), (scalar, 'scalar'))
        ),
    ]


#: What mmengine's Runner writes beyond tensors and plain containers.
MMENGINE_TYPES: tuple[Any, ...] = (
    HistoryBuffer,
    (_history_statistic, 'builtins.getattr'),
    *_numpy_types(),
)


def encode(text: str, encoding: str = 'latin1') -> bytes:
    """Replace ``codecs.encode``, by which pickles of protocol 2 keep bytes.

    The real one has codecs that double what they are given, such as ``hex``; a chain of
    forty of them would not fit into any memory.
    """
    if encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError(f'an encoding {encoding!r:.40} is not allowed')
    return codecs.encode(text, 'latin1')


def _bytearray(*arguments: Any) -> bytearray:
    """Replace ``bytearray``, of which a number makes that many bytes."""
    if any(isinstance(argument, int) for argument in arguments):
        raise pickle.UnpicklingError('a bytearray of a given size is not allowed')
    return bytearray(*arguments)


#: What torch itself lets files call and a few bytes can exhaust the memory with.
_AMPLIFIERS = {'_codecs.encode': encode, 'builtins.bytearray': _bytearray}


@contextmanager
def safe_types(allowed: Iterable[Any]) -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` accept exactly some types more.

    Args:
        allowed: The types, as for ``torch.serialization.safe_globals``.
    """
    own = unpickler._get_allowed_globals()
    replaced = {name: own[name] for name in _AMPLIFIERS if name in own}
    with safe_globals(list(allowed)):
        own.update({name: _AMPLIFIERS[name] for name in replaced})
        try:
            yield
        finally:
            own.update(replaced)


def load_weights_only(
    path: str | Path,
    map_location: Any = None,
    allowed: Iterable[Any] = MMENGINE_TYPES,
    mmap: bool = False,
) -> Any:
    """Load a file that ``torch.save`` wrote, executing nothing it carries.

    Args:
        path: The file.
        map_location: As for ``torch.load``.
        allowed: Types accepted besides tensors and plain containers, as for
            ``torch.serialization.safe_globals``.
        mmap: Whether to leave the tensors' memory in the file, as for
            ``torch.load``.

    Returns:
        The loaded object.

    Raises:
        FileNotFoundError: If there is no such file.
        pickle.UnpicklingError: If the file asks for any other type; the message
            names it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    with safe_types(allowed):
        try:
            return torch.load(  # noqa: TID251 - of weights only
                path, map_location=map_location, weights_only=True, mmap=mmap
            )
        except pickle.UnpicklingError as error:
            refused = _refused_types(path) or re.findall(r'GLOBAL (\S+)', str(error))
            if not refused:
                raise
            raise pickle.UnpicklingError(
                f'checkpoint {path} asks for {", ".join(refused)}, which could run '
                'code; only tensors, plain containers and what mmengine itself '
                'writes are loaded. Where you trust it, save it again without them.'
            ) from error


def _refused_types(path: Path) -> list[str]:
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except ValueError:  # the format before PyTorch 1.6, which has no such listing
        return []


def load_safetensors(path: str | Path) -> dict[str, Any]:
    """Load a safetensors file as a checkpoint.

    Returns:
        The tensors as ``state_dict``, on the CPU and in the file's memory, and the
        ``meta`` that `pelk_mm.checkpoints` writes, if any.

    Raises:
        ImportError: If safetensors is not installed.
    """
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError(
            f'{path} is a safetensors file; `pip install safetensors` to read it'
        ) from error
    with safe_open(Path(path).expanduser(), framework='pt', device='cpu') as file:
        meta = json.loads((file.metadata() or {}).get('meta', '{}'))
        state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if isinstance(meta, dict) and isinstance(meta.get('dataset_meta'), dict):
        # JSON has no tuples, and mmdet takes a list for several colours.
        palette = meta['dataset_meta'].get('palette')
        if isinstance(palette, list):
            meta['dataset_meta']['palette'] = [
                tuple(colour) if isinstance(colour, list) else colour
                for colour in palette
            ]
    return {'meta': meta, 'state_dict': state_dict}
