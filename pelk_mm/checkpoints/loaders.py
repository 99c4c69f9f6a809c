"""Loaders of mmengine, replaced by ones that run nothing of what files carry.

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

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from pelk_mm.environment import read_switch

from .data_files import replace_handlers
from .errors import CheckpointError, explained
from .files import read_checkpoint
from .loading import MMENGINE_TYPES, safe_types

#: Set to 1 before the first import, it leaves mmengine's loaders as they are.
KEEP_LOADERS = 'PELK_MM_KEEP_LOADERS'


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Load a local checkpoint for mmengine, executing nothing it carries.

    Args:
        filename: The file, of any format that `read_checkpoint` knows.
        map_location: As for ``torch.load``; safetensors come to the CPU.

    Raises:
        CheckpointError: If it cannot be read, or holds no weights by name.
    """
    path = Path(filename).expanduser()
    # In memory of its own: whoever trains on may overwrite the file.
    content = read_checkpoint(path, map_location, MMENGINE_TYPES, mmap=False)
    return _for_mmengine(content, path)


def _for_mmengine(content: Any, source: str | Path) -> Any:
    """A checkpoint as mmengine expects it, without what it would execute.

    To compare the number of GPUs, ``Runner.resume`` runs the text of a config that
    mmcv 1.x has left in ``meta.config``, which could be anything.

    Raises:
        CheckpointError: If it has no weights by name.
    """
    weights = content
    if isinstance(content, dict):
        weights = content.get('state_dict', content)
        meta = content.get('meta')
        if isinstance(meta, dict) and 'config' in meta:
            del meta['config']
    if not isinstance(weights, Mapping):
        raise CheckpointError(
            f'{source} holds a {type(weights).__name__}, not weights by name'
        )
    for name in weights:
        if not isinstance(name, str):
            raise CheckpointError(
                f'{source} has a tensor under {name!r:.80}, which is not a name'
            )
    return content


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

    Raises:
        CheckpointError: If it cannot be downloaded or read, or holds no weights.
    """
    if progress is None:
        progress = os.isatty(0)
    if not is_main_process():
        barrier()
    with explained(filename), safe_types(MMENGINE_TYPES):
        checkpoint = torch.hub.load_state_dict_from_url(  # noqa: TID251 - of weights
            filename,
            model_dir=model_dir,
            map_location=map_location,
            progress=progress,
            weights_only=True,
        )
    if is_main_process():
        barrier()
    return _for_mmengine(checkpoint, filename)


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
    return read_switch(KEEP_LOADERS, "keeps mmengine's loaders")


if not _keeps_loaders():
    replace_loaders()
