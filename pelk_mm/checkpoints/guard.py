"""Stop a backbone from starting at random where a released file was to be loaded."""

import pickle
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.runner.checkpoint import CheckpointLoader

from pelk_mm.backbones import LargeKernelBackbone

from .arch import BACKBONES, infer_backbone
from .convert import select_weights
from .files import CheckpointError, find_weights, read_checkpoint
from .rules import detect_family


def check_names(names: Iterable[str]) -> None:
    """Raise an error if parameter names are released ones.

    Raises:
        CheckpointError: If they are.
    """
    family = detect_family(names)
    if family is not None:
        raise CheckpointError(
            f'the checkpoint has the released names of {BACKBONES[family]}; convert it '
            'with\n  python tools/convert_checkpoint.py SRC DST\nand load DST'
        )


def check_converted(checkpoint: str, backbone: LargeKernelBackbone) -> None:
    """Raise an error if a checkpoint has the released names.

    mmengine loads pretrained weights by the names that fit and only warns of the
    others: an unconverted file would leave every weight at random.

    Args:
        checkpoint: Path or URL of ``init_cfg=dict(type='Pretrained')``.
        backbone: The backbone that it is for.

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
        return  # loading it, which comes next, says what is wrong
    family = detect_family(re.sub(r'^(module\.)*(backbone\.)?', '', n) for n in names)
    if family is None:
        return
    own = type(backbone).__name__
    if own not in ('PeLK', BACKBONES[family]):
        raise CheckpointError(
            f'{checkpoint} is a released {BACKBONES[family]} checkpoint, but the '
            f'backbone is {own}; give one of {own}'
        )
    command = ['python', 'tools/convert_checkpoint.py', path]
    command.append(path.with_name(f'{path.stem}_pelk_mm.pth'))
    if ema:
        command.append('--ema')
    if own == 'PeLK':
        command += ['--warm-start', _warm_start(backbone)]
    raise CheckpointError(
        f'{checkpoint} has the released names, not those of {own} here. Convert it '
        f'with\n  {shlex.join(map(str, command))}\nand give the result as checkpoint.'
    )


def _warm_start(backbone: LargeKernelBackbone) -> str:
    """What the conversion is asked for to start this PeLK."""
    shapes = {name: tuple(t.shape) for name, t in backbone.state_dict().items()}
    try:
        arch = infer_backbone(shapes, 'pelk')['arch']
    except CheckpointError:  # sharing grids of one's own make kernels of any size
        return 'pelk'
    return f'pelk-{arch}' if isinstance(arch, str) else 'pelk'


def _download(url: str) -> Path:
    """Where torch keeps what it downloads from a URL, once it is there."""
    # A refusal comes after the download, and the conversion accepts more types.
    with suppress(pickle.UnpicklingError):
        CheckpointLoader.load_checkpoint(url, map_location='cpu')
    return Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(url).path).name)
