"""Which checkpoint a training goes on from, where the latest one may be damaged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pelk_mm.checkpoints.files import CheckpointError, first_line, read_checkpoint

#: The file in which mmengine names the checkpoint that it saved last.
LAST = 'last_checkpoint'

#: What a resumed training takes from a checkpoint, by entry.
NEEDED = {
    'meta': 'no iteration number',
    'state_dict': 'no weights',
    'message_hub': 'no record of the training',
    'optimizer': "no optimizer's state",
}


class ResumePoint(NamedTuple):
    """The checkpoint to go on from, and what to tell about it.

    Attributes:
        path: The checkpoint; None where there is none yet.
        notice: A sentence where it is not the one that was saved last, or None.
    """

    path: str | None
    notice: str | None


def is_local_file(path: str) -> bool:
    """Whether a checkpoint is a file here: not an address, nor a folder of shards."""
    return '://' not in path and not Path(path).is_dir()


def find_fault(path: str | Path) -> str | None:
    """What keeps a training from resuming from a local file, or None.

    All of the file is read, and its checksums are compared.

    Returns:
        A phrase that goes on from the file's name, such as "does not exist".
    """
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        # Its remedy is for files from elsewhere.
        fault = first_line(error).partition('; download')[0]
        return fault.replace(f'checkpoint {path} ', '').replace(f'{path} ', '')
    return _missing_entry(checkpoint)


def _missing_entry(checkpoint: Any) -> str | None:
    if not isinstance(checkpoint, dict):
        return 'is no checkpoint of a training'
    meta = checkpoint.get('meta')
    for name, reason in NEEDED.items():
        if name not in checkpoint or (
            name == 'meta' and not (isinstance(meta, dict) and 'iter' in meta)
        ):
            return f'has {reason} to resume'
    return None


def _age(path: Path) -> tuple[str, int] | None:
    """What checkpoints of a training are ordered by; None where one is unreadable.

    The time in the file: that of a copied file is when it was copied, and numbers in
    names may be those of an earlier training in the same folder.
    """
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError:
        return None
    if _missing_entry(checkpoint) is not None:
        return None
    meta = checkpoint['meta']
    return str(meta.get('time', '')), int(meta['iter'])


def _readable(folders: tuple[Path, ...], template: str) -> Iterator[Path]:
    """Checkpoints that a training can resume from, the newest first."""
    pattern = template.format('*')
    paths = {path for folder in folders for path in folder.glob(pattern)}
    ages = {path: age for path in paths if (age := _age(path)) is not None}
    yield from sorted(ages, key=lambda path: ages[path], reverse=True)


def _read_last(work_dir: Path) -> str | None:
    """What ``last_checkpoint`` names; None where it names nothing."""
    try:
        return (work_dir / LAST).read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def find_resume_point(work_dir: Path, folder: Path, template: str) -> ResumePoint:
    """Find the checkpoint that a training goes on from.

    That is the one which ``last_checkpoint`` names. Where it is missing or damaged, it
    is the newest in the folder that is neither.

    Args:
        work_dir: The training's folder, with ``last_checkpoint``.
        folder: Where its checkpoints are.
        template: Name of a checkpoint, with ``{}`` for the iteration or epoch.

    Raises:
        CheckpointError: If there are checkpoints and none can be read.
    """
    last = _read_last(work_dir)
    if last is not None:
        if not is_local_file(last):
            return ResumePoint(last, None)
        fault = find_fault(last)
        if fault is None:
            return ResumePoint(last, None)
        reason = f'{last}, which was saved last, {fault}'
    elif (work_dir / LAST).exists():
        reason = f'{work_dir / LAST} names no checkpoint'
    else:
        reason = f'{work_dir} has no {LAST}'
    newest = next(_readable((folder, work_dir), template), None)
    if newest is not None:
        return ResumePoint(str(newest), f'{reason}; resuming from {newest} instead')
    if last is None and not any(folder.glob(template.format('*'))):
        return ResumePoint(
            None, f'{reason} and no checkpoint; the training starts from its beginning'
        )
    raise CheckpointError(
        f'{reason}, and no other checkpoint in {folder} can be resumed; put one there, '
        'or start again without --resume'
    )


def require_readable(path: str, folder: Path, template: str) -> None:
    """Raise unless a training can resume from the checkpoint that it was told to.

    Args:
        path: The checkpoint.
        folder: Where those of the training are.
        template: Name of one, with ``{}`` for the iteration or epoch.

    Raises:
        CheckpointError: With the newest checkpoint that could be resumed.
    """
    fault = find_fault(path) if is_local_file(path) else None
    if fault is None:
        return
    other = next(_readable((folder, Path(path).parent), template), None)
    remedy = (
        f'the newest that can be resumed is {other}: set load_from={other}'
        if other is not None
        else f'no checkpoint in {folder} can be resumed either'
    )
    raise CheckpointError(f'{path} {fault}; {remedy}')
