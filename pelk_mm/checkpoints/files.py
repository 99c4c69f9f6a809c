"""Reading and writing checkpoint files; what is read may come from anyone."""

import argparse
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pelk_mm.files import write_atomically

from .arrays import is_npz, is_plain_pickle, read_npz, read_pickle
from .bounds import require_bounded
from .errors import CheckpointError, explained, first_line
from .loading import MMENGINE_TYPES, load_safetensors, load_weights_only

Item = TypeVar('Item')

#: Passes items on while it shows a description and how many of a total have passed.
Track = Callable[[Iterable[Item], str, int], Iterable[Item]]

#: What the released training scripts put into their files in addition to tensors; such
#: an object only holds values, and it is dropped.
TRAINING_SCRIPT_TYPES = (argparse.Namespace,)

#: Types of arrays of anything but numbers, as class names may be kept in.
_ARRAY_TYPES = tuple(type(np.dtype(code)) for code in ('U', 'S', 'O'))

#: What a file of ``torch.save`` may ask for beyond tensors and plain containers.
KNOWN_TYPES = (*MMENGINE_TYPES, *TRAINING_SCRIPT_TYPES, *_ARRAY_TYPES)

#: Endings of the files that can be written.
SUFFIXES = ('.pth', '.pt', '.safetensors')

#: How files of ``torch.save`` before PyTorch 1.6 begin, after two bytes.
_LEGACY_MAGIC = b'\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'

_CHUNK = 1 << 24


def untracked(items: Iterable[Item], description: str, total: int) -> Iterable[Item]:
    """Show nothing; the default of every ``track`` argument."""
    return items


def file_sha256(path: Path, track: Track = untracked) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        chunks = iter(lambda: file.read(_CHUNK), b'')
        for chunk in track(chunks, 'hashing', -(-path.stat().st_size // _CHUNK)):
            digest.update(chunk)
    return digest.hexdigest()


def read_checkpoint(
    path: str | Path,
    map_location: Any = 'cpu',
    types: Sequence[Any] = KNOWN_TYPES,
    mmap: bool = True,
) -> Any:
    """Load a checkpoint of any format.

    Args:
        path: A file of ``torch.save``, of either of its formats, or of safetensors; or
            arrays by name, as a plain pickle or an ``.npz``.
        map_location: As for ``torch.load``, of whose files alone it is heeded.
        types: Types that a file of ``torch.save`` may ask for.
        mmap: Whether to leave its tensors in the file's memory.

    Raises:
        CheckpointError: If the file is missing, damaged, something else, claims more
            values than it can hold, or asks for types that could run code; nothing is
            executed in any case.
    """
    path = Path(path)
    with explained(path):
        content = _read(path, map_location, types, mmap)
        require_bounded(content, path.stat().st_size)
        return content


def _read(path: Path, map_location: Any, types: Sequence[Any], mmap: bool) -> Any:
    """Load a file or raise what it is instead, a phrase that goes on from its name."""
    if path.is_dir():
        raise CheckpointError('is a folder; give a checkpoint file')
    if not path.exists():
        raise CheckpointError('does not exist')
    if not path.is_file():
        raise CheckpointError('is a device or a pipe; give a checkpoint file')
    with path.open('rb') as file:
        head = file.read(512)
    if not head:
        raise CheckpointError('is empty; download it again')
    text = head.lstrip().lower()
    if text.startswith((b'<!doctype', b'<html', b'<?xml')):
        raise CheckpointError(
            'is a web page, not weights: its server answered the download with a '
            'message; open the link in a browser and save the file it offers'
        )
    if text.startswith(b'version https://git-lfs'):
        raise CheckpointError(
            'is a Git LFS pointer, not weights; run `git lfs pull` for the file'
        )
    if head[8:10] == b'{"':
        return load_safetensors(path)
    if head.startswith(b'\x93NUMPY'):
        raise CheckpointError(
            'holds one array of numpy, and a dict in it would be a pickle; save the '
            'weights with numpy.savez or torch.save'
        )
    zipped = zipfile.is_zipfile(path)
    if zipped:
        if is_npz(path):
            return read_npz(path)
        _check_archive(path)
    elif head.startswith(b'PK'):
        raise CheckpointError('is truncated: its end is missing; download it again')
    elif not head[2:].startswith(_LEGACY_MAGIC):
        if is_plain_pickle(head):
            return read_pickle(path)
        raise CheckpointError(
            'is not a checkpoint: neither torch.save nor safetensors writes files that '
            'begin like it'
        )
    return load_weights_only(path, map_location, types, mmap=mmap and zipped)


def _check_archive(path: Path) -> None:
    """Check what ``torch.load`` trusts: checksums, and that nothing is compressed."""
    unpack = 'unpack it and give the checkpoint inside'
    with zipfile.ZipFile(path) as archive:
        records = {name.rpartition('/')[2] for name in archive.namelist()}
        if 'constants.pkl' in records:
            raise CheckpointError(
                'is a TorchScript program, not weights; save the state_dict() of the '
                'model that it was made of'
            )
        if 'data.pkl' not in records:
            raise CheckpointError(f'is an archive without weights; {unpack}')
        if any(e.compress_type != zipfile.ZIP_STORED for e in archive.infolist()):
            raise CheckpointError(
                f'is a compressed archive, which torch.save does not write; {unpack}'
            )
        broken = archive.testzip()
    if broken is not None:
        raise CheckpointError(
            f'is damaged: the checksum of its record {broken} is wrong; download it '
            'again'
        )


def own_memory(tensor: Tensor) -> Tensor:
    """The tensor alone in its storage, without a copy where it is contiguous.

    Saving a tensor saves its whole storage, which may be that of a whole file.
    """
    tensor = tensor.detach().contiguous()
    storage, size = tensor.untyped_storage(), tensor.nbytes
    if storage.nbytes() == size:
        return tensor
    start = tensor.storage_offset() * tensor.element_size()
    return torch.empty(0, dtype=tensor.dtype).set_(
        storage[start : start + size], 0, tensor.shape, tensor.stride()
    )


def check_destination(path: Path, force: bool) -> None:
    """Raise a `CheckpointError` unless a file may be written there.

    Args:
        path: Path of the file to write.
        force: Whether it may replace a file.
    """
    fault = None
    if path.suffix not in SUFFIXES:
        choices = ', '.join(SUFFIXES)
        fault = (
            f'has none of the endings {choices}, which choose the format; choose one'
        )
    elif path.is_dir() or not path.absolute().parent.is_dir():
        fault = 'is not a file in an existing folder; choose another destination'
    elif path.exists() and not force:
        fault = 'exists and is kept; choose another name or give --force'
    if fault is not None:
        raise CheckpointError(f'{path} {fault}')


@contextmanager
def write_output(path: Path) -> Iterator[Path]:
    """`write_atomically`, with a `CheckpointError` where the file cannot be written."""
    try:
        with write_atomically(path) as temporary:
            yield temporary
    except OSError as error:
        raise CheckpointError(f'{path} cannot be written: {error}') from error


def write_checkpoint(
    path: Path,
    state_dict: Mapping[str, Tensor],
    meta: Mapping[str, Any] | None,
    key: str = 'state_dict',
    track: Track = untracked,
) -> None:
    """Write a checkpoint, read it back, and only then give it its name.

    Args:
        path: Path of the file; its ending chooses the format.
        state_dict: The tensors.
        meta: Notes on them, of plain containers, numbers and strings; None for a file
            that holds nothing but tensors.
        key: Entry of a ``torch.save`` file that holds the tensors.
        track: Shows progress.

    Raises:
        CheckpointError: If it cannot be written or does not read back as it is.
    """
    state_dict = {name: own_memory(tensor) for name, tensor in state_dict.items()}
    notes = {} if meta is None else {'meta': dict(meta)}
    safetensors = path.suffix == '.safetensors'
    with write_output(path) as temporary:
        if safetensors:
            _save_safetensors(state_dict, notes, temporary)
        else:
            try:
                # Given a path, torch would write its temporary name into the file.
                with temporary.open('wb') as file:
                    torch.save({**notes, key: state_dict}, file)
            except RuntimeError as error:  # how torch reports a full disk
                raise OSError(first_line(error)) from error
        written = read_checkpoint(temporary)['state_dict' if safetensors else key]
        if set(written) != set(state_dict):
            raise CheckpointError(f'{path} reads back with other tensors; try again')
        for name, tensor in track(state_dict.items(), 'verifying', len(state_dict)):
            if not _same_bits(tensor, written[name]):
                raise CheckpointError(f'{path} reads back wrongly at {name}; try again')


def _save_safetensors(
    state_dict: dict[str, Tensor], notes: dict[str, Any], path: Path
) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError as error:
        raise CheckpointError(
            'safetensors is not installed; `pip install safetensors` or choose a '
            'destination ending in .pth'
        ) from error
    metadata = {name: json.dumps(note) for name, note in notes.items()}
    try:
        save_file(state_dict, path, {'format': 'pt', **metadata})
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(first_line(error)) from error


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (a, b)]
    return torch.equal(*bits)
