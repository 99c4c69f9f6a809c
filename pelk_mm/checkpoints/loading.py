"""Loading checkpoints without running what they carry.

PyTorch 2.6 made ``torch.load`` refuse everything but tensors and plain containers,
and mmengine's own training checkpoints hold more than that: the buffers of its log
and numpy numbers. Importing this module replaces loaders of mmengine by ones that
accept exactly those types and refuse anything else by name:

========================================  =============================================
local files                               replaced; ``.safetensors`` can be read too
``http://``, ``https://``                 replaced; mmengine's own executes what a
                                          file carries (``weights_only=False``)
``torchvision://``, ``modelzoo://``,      covered: mmengine looks their URLs up and
``openmmlab://``, ``open-mmlab://``,      loads them with the replaced HTTP loader
``mmcls://``
``pavi://``, ``s3://``, ``petrel://``     not covered. mmengine 0.10.7 refuses its own
                                          training checkpoints there; onedl-mmengine
                                          0.10.12 loads a file that is refused once
                                          more with ``weights_only=False``. Download
                                          such a file and load it as a local one.
``.pkl``, ``.pickle``, ``.yaml``,         replaced, for annotations and configs alike;
``.yml`` through `mmengine.load`          see `data_files`
========================================  =============================================

``PELK_MM_KEEP_LOADERS=1`` in the environment, set before the first import of
``pelk_mm``, leaves all of mmengine's loaders as they are. What ``pelk_mm`` itself
loads is loaded by `load_weights_only` in any case.
"""

import json
import os
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from .data_files import replace_handlers

#: Set to 1 before the first import, it leaves mmengine's loaders as they are.
KEEP_LOADERS = 'PELK_MM_KEEP_LOADERS'


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
    with safe_globals(list(allowed)):
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


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Load a local checkpoint for mmengine, executing nothing it carries.

    Args:
        filename: The file; a name in ``.safetensors`` is read in that format.
        map_location: As for ``torch.load``; safetensors come to the CPU.
    """
    if Path(filename).suffix == '.safetensors':
        return load_safetensors(filename)
    return load_weights_only(filename, map_location)


def load_from_http(
    filename: str,
    map_location: Any = None,
    model_dir: str | None = None,
    progress: bool | None = None,
) -> Any:
    """Download a checkpoint once (rank 0 first) and load it as a local one is.

    Args:
        filename: The URL.
        map_location: As for ``torch.load``.
        model_dir: Where to keep the file; by default torch.hub's folder.
        progress: Whether to show a progress bar; by default where the standard input
            is a terminal, as mmengine does.
    """
    if progress is None:
        progress = os.isatty(0)
    if not is_main_process():
        barrier()
    with safe_globals(list(MMENGINE_TYPES)):
        checkpoint = torch.hub.load_state_dict_from_url(  # noqa: TID251 - of weights only
            filename,
            model_dir=model_dir,
            map_location=map_location,
            progress=progress,
            weights_only=True,
        )
    if is_main_process():
        barrier()
    return checkpoint


def replace_loaders() -> None:
    """Replace mmengine's loaders as the module's docstring lists them."""
    replace_handlers()
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(
        ('http://', 'https://'), load_from_http, force=True
    )
    # The loaders that look a URL up call it by its name in their module.
    mmengine_checkpoint.load_from_http = load_from_http


def _keeps_loaders() -> bool:
    """Read the environment.

    Raises:
        ValueError: If the variable is set to anything but 0 or 1.
    """
    value = os.environ.get(KEEP_LOADERS) or '0'
    if value not in ('0', '1'):
        raise ValueError(
            f"{KEEP_LOADERS}={value} is neither 0 nor 1; 1 keeps mmengine's loaders"
        )
    return value == '1'


if not _keeps_loaders():
    replace_loaders()
