"""Look into the file of an ``init_cfg`` before it is loaded.

The file's own path, prefix and entries are known only there; whether weights fit, `fit`
decides for whatever is loaded. The guard knows files and names; what it has to know of
a backbone is handed to it.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.runner.checkpoint import CheckpointLoader

from .download import is_url
from .files import CheckpointError, read_checkpoint
from .fit import WeightsError
from .misfit import in_other_entry, shorten
from .rules import BACKBONE_TYPES, backbone_prefixes, detect_family
from .weights import AVERAGED, find_weights, select_weights


def require_loadable(
    checkpoint: str,
    backbone_type: str,
    warm_start: str = '',
    prefix: str | None = None,
) -> None:
    """Raise an error if a checkpoint has the released names or not the given prefix.

    A file that cannot be read passes: loading it, which comes next, says what is wrong.
    So does one that does not fit the backbone.

    Args:
        checkpoint: Path or URL of ``init_cfg=dict(type='Pretrained')``.
        backbone_type: Type of the backbone that it is for.
        warm_start: What ``pelk-mm convert_checkpoint --warm-start`` has to be given for
            this backbone; '' if it takes no other family's weights.
        prefix: ``prefix`` of the ``init_cfg``; None for none.

    Raises:
        WeightsError: If it has, or if mmengine, which reads ``state_dict`` alone, would
            find nothing under the prefix; the message has the command that converts it,
            or the prefix that it does have.
    """
    path = Path(checkpoint).expanduser()
    if is_url(checkpoint):
        path = _download(checkpoint)
    try:
        content = read_checkpoint(path)
    except CheckpointError:
        return
    try:
        key, _ = find_weights(content)
        ema = key in AVERAGED
        names = list(select_weights(content, ema).tensors)
    except CheckpointError:
        _require_names(checkpoint, prefix, content)
        return
    prefixes = backbone_prefixes(names)
    families = [
        detect_family(n.removeprefix(p) for n in names if n.startswith(p))
        for p in prefixes
    ]
    family = next(filter(None, families), None)
    if family is None:
        if prefix is not None:
            _require_prefix(checkpoint, prefix, names, prefixes)
            _require_names(checkpoint, prefix, content)
        return
    released_type = BACKBONE_TYPES[family]
    if not warm_start and backbone_type != released_type:
        raise WeightsError(
            f'{checkpoint} is a released {released_type} checkpoint, but the backbone '
            f'is {backbone_type}; give a checkpoint of {backbone_type}'
        )
    result = path.with_name(f'{path.stem}_pelk_mm.pth')
    command = ['pelk-mm', 'convert_checkpoint', str(path), str(result)]
    command += ['--ema'] * ema + ['--warm-start', warm_start] * bool(warm_start)
    if len(prefixes) > 1:
        command += ['--from-prefix', prefixes[families.index(family)]]
    if not all(name.startswith(tuple(prefixes)) for name in names):
        command += ['--prefix', '']  # without heads, which an init_cfg has no use for
    without = ' without prefix' * (prefix is not None)
    raise WeightsError(
        f'{checkpoint} has the released names, not those of {backbone_type} here. '
        f'Convert it with\n  {shlex.join(command)}\nand give the result as checkpoint'
        f'{without}.'
    )


def backbone_init(checkpoint: str) -> dict[str, str]:
    """The ``init_cfg`` that starts a backbone from a checkpoint.

    Args:
        checkpoint: Path or URL of a backbone's weights, or of a whole model's that has
            one: a classifier's, such as our pre-training configs train, or a
            segmenter's or detector's.

    Returns:
        ``type``, ``checkpoint`` and, where names of the backbone have one, ``prefix``.
        What is saved with EMAHook starts from the averaged weights.

    Raises:
        CheckpointError: If it cannot be read, or has no backbone or several.
    """
    path = _download(checkpoint) if is_url(checkpoint) else Path(checkpoint)
    names = list(select_weights(read_checkpoint(path.expanduser())).tensors)
    prefixes = backbone_prefixes(names)
    if not prefixes:
        raise WeightsError(
            f'{checkpoint} has no backbone of {", ".join(BACKBONE_TYPES.values())}; '
            f'its names are {shorten(names)}'
        )
    if len(prefixes) > 1:
        raise WeightsError(
            f'{checkpoint} has {len(prefixes)} backbones; choose one by '
            f'--cfg-options model.backbone.init_cfg.prefix={prefixes[0]} or the like'
        )
    init = dict(type='Pretrained', checkpoint=checkpoint)
    return init | dict(prefix=prefixes[0]) if prefixes[0] else init


def _require_prefix(
    checkpoint: str, prefix: str, names: list[str], prefixes: list[str]
) -> None:
    """Raise an error if no backbone is under a prefix, of which mmengine says less."""
    given = _as_mmengine_reads(prefix)
    if given in prefixes:
        return
    if prefixes:
        found = ' and '.join(map(repr, prefixes))
        where = f'its backbone is under {found}; set prefix={prefixes[0]!r}'
        if prefixes == ['']:
            where = 'its backbone has no prefix; leave it out'
    elif any(name.startswith(given) for name in names):
        return
    else:
        where = f'its names are {shorten(names)}'
    raise WeightsError(f'{checkpoint} has no backbone under prefix={prefix!r}; {where}')


def _require_names(checkpoint: str, prefix: str | None, content: Any) -> None:
    """Raise an error if what mmengine reads has no name under a prefix."""
    read = content.get('state_dict', content) if isinstance(content, Mapping) else None
    if prefix is None or not isinstance(read, Mapping):  # its loader refuses the latter
        return
    names = list(map(str, read))
    if any(name.startswith(_as_mmengine_reads(prefix)) for name in names):
        return
    key, _ = find_weights(content)
    where = f'its names are {shorten(names)}' if names else 'it is empty'
    if key not in (None, 'state_dict'):
        where = in_other_entry(str(key))
    raise WeightsError(f'{checkpoint} has no backbone under prefix={prefix!r}; {where}')


def _as_mmengine_reads(prefix: str) -> str:
    return prefix if prefix.endswith('.') else f'{prefix}.'


def _download(url: str) -> Path:
    """Where torch keeps what it downloads from a URL, once it is there."""
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(url).path).name)
    try:
        CheckpointLoader.load_checkpoint(url, map_location='cpu')
    except CheckpointError:
        # A refusal comes after the download, and the conversion accepts more types.
        if not path.is_file():
            raise
    return path
