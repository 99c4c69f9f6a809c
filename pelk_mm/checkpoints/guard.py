"""Stop a backbone from starting at random where a released file was to be loaded.

mmengine loads pretrained weights by the names that fit and only warns of the others:
a released file that was not converted would leave every weight at random. The guard
knows files and names; what it has to know of a backbone is handed to it.
"""

import pickle
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.runner.checkpoint import CheckpointLoader

from .files import CheckpointError, read_checkpoint
from .rules import BACKBONE_TYPES, detect_family
from .weights import find_weights, select_weights


def refuse_released_names(names: Iterable[str]) -> None:
    """Raise an error if parameter names are released ones.

    Args:
        names: Names without the prefix of the backbone.

    Raises:
        CheckpointError: If they are.
    """
    family = detect_family(names)
    if family is not None:
        raise CheckpointError(
            f'the checkpoint has the released names of {BACKBONE_TYPES[family]}; '
            'convert it with\n  pelk-mm convert_checkpoint SRC DST\nand load DST'
        )


def require_converted(
    checkpoint: str, backbone_type: str, warm_start: str = ''
) -> None:
    """Raise an error if a checkpoint has the released names.

    A file that cannot be read passes: loading it, which comes next, says what is wrong.

    Args:
        checkpoint: Path or URL of ``init_cfg=dict(type='Pretrained')``.
        backbone_type: Type of the backbone that it is for.
        warm_start: What ``pelk-mm convert_checkpoint --warm-start`` has to be given for
            this backbone; '' if it takes no other family's weights.

    Raises:
        CheckpointError: If it has; the message has the command that converts it.
    """
    path = Path(checkpoint).expanduser()
    if checkpoint.startswith(('http://', 'https://')):
        path = _download(checkpoint)
    try:
        content = read_checkpoint(path)
        ema = find_weights(content)[0] == 'model_ema'
        names = select_weights(content, ema).tensors
    except CheckpointError:
        return
    family = detect_family(re.sub(r'^(module\.)*(backbone\.)?', '', n) for n in names)
    if family is None:
        return
    released_type = BACKBONE_TYPES[family]
    if not warm_start and backbone_type != released_type:
        raise CheckpointError(
            f'{checkpoint} is a released {released_type} checkpoint, but the backbone '
            f'is {backbone_type}; give a checkpoint of {backbone_type}'
        )
    result = path.with_name(f'{path.stem}_pelk_mm.pth')
    command = ['pelk-mm', 'convert_checkpoint', str(path), str(result)]
    command += ['--ema'] * ema + ['--warm-start', warm_start] * bool(warm_start)
    raise CheckpointError(
        f'{checkpoint} has the released names, not those of {backbone_type} here. '
        f'Convert it with\n  {shlex.join(command)}\nand give the result as checkpoint.'
    )


def _download(url: str) -> Path:
    """Where torch keeps what it downloads from a URL, once it is there."""
    # A refusal comes after the download, and the conversion accepts more types.
    with suppress(pickle.UnpicklingError):
        CheckpointLoader.load_checkpoint(url, map_location='cpu')
    return Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(url).path).name)
