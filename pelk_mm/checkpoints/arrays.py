"""Weights as plain numpy arrays: pickles and ``.npz``, read without running code."""

import argparse
import collections
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from .bounds import allowance
from .errors import CheckpointError
from .loading import encode

#: Functions that pickles of arrays call.
_BUILDERS: tuple[tuple[str, Any], ...] = (
    ('multiarray', np.empty(0).__reduce__()[0]),
    ('multiarray', np.float64(0).__reduce__()[0]),
    ('numeric', np.empty(0).__reduce_ex__(5)[0]),
)

_TRUSTED = 'where you trust it, load it and save its weights with torch.save'

#: What a pickle of arrays by name calls, under the names of numpy 1 and 2.
_ALLOWED: dict[tuple[str, str], Any] = {
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('argparse', 'Namespace'): argparse.Namespace,
    ('_codecs', 'encode'): encode,
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    **{
        (f'{core}.{module}', function.__name__): function
        for core in ('numpy.core', 'numpy._core')
        for module, function in _BUILDERS
    },
}


#: Python's own, in Python. ArrayUnpickler is its guard.
_Unpickler = pickle._Unpickler  # noqa: TID251


class _Bounded:
    """A file of which no more is read at once than is left.

    Python would take the memory that a length asks for before it finds less to read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.readline = file.readline
        here = file.tell()
        self._end = file.seek(0, os.SEEK_END)
        file.seek(here)

    def read(self, size: int) -> bytes:
        if size > 1 << 16:
            size = min(size, self._end - self._file.tell())
        return self._file.read(size)


class ArrayUnpickler(_Unpickler):
    """Unpickler that calls nothing but what builds arrays and plain containers.

    It is the one in Python: of the one in C, six bytes that name a slot of its memo
    demand 32 GiB.

    Args:
        file: The pickle, open in binary mode at its start; it has to be seekable.
        **options: As for `pickle.Unpickler`.
    """

    #: What may be asked for, by module and name.
    allowed = _ALLOWED
    # What the inherited methods work with.
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def __init__(self, file: BinaryIO, **options: Any) -> None:
        super().__init__(_Bounded(file), **options)

    def find_class(self, module: str, name: str) -> Any:
        """Look up what the pickle asks for.

        Raises:
            pickle.UnpicklingError: If it is anything but arrays and containers.
        """
        if (module, name) in self.allowed:
            return self.allowed[module, name]
        raise pickle.UnpicklingError(self.refuse(module, name))

    def load_bytearray8(self) -> None:
        """Read a bytearray; the inherited method allocates before it reads."""
        (length,) = struct.unpack('<Q', self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch: ClassVar[dict[int, Any]] = {
        **_Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }

    def refuse(self, module: str, name: str) -> str:
        """Explain why a file is not read; the text goes on from the file's name."""
        return (
            f'is a plain pickle and asks for {module}.{name}, which could run code; '
            f'only arrays and plain containers are read from it; {_TRUSTED}'
        )


def is_plain_pickle(head: bytes) -> bool:
    """Whether a file that begins like this is a pickle of protocol 2 or later."""
    return head[:1] == b'\x80' and head[1:2] in (b'\x02', b'\x03', b'\x04', b'\x05')


def read_pickle(path: Path) -> Any:
    """Load a plain pickle of arrays, also one of Python 2.

    Raises:
        pickle.UnpicklingError: If it asks for anything else; the message goes on from
            the file's name. Tensors are refused too: outside of ``torch.save`` they
            are read by a function that runs any code.
    """
    with path.open('rb') as file:
        return ArrayUnpickler(file, encoding='latin1').load()


def is_npz(path: Path) -> bool:
    """Whether an archive holds arrays of numpy alone."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith('.npy') for name in names)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Load the arrays of a file of ``numpy.savez`` by name.

    Raises:
        pickle.UnpicklingError: If one of them is a pickle; see `read_pickle`.
        CheckpointError: If they are many times larger than the file.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > allowance(path.stat().st_size):
        raise CheckpointError(
            f'would take {unpacked:,} bytes unpacked; save it with numpy.savez'
        )
    with np.load(path, allow_pickle=False) as archive:
        arrays = {}
        for name in archive.files:
            try:
                arrays[name] = archive[name]
            except ValueError as error:
                if 'allow_pickle' not in str(error):
                    raise
                raise pickle.UnpicklingError(
                    f'has objects that are no numbers under {name!r}, which could run '
                    f'code; {_TRUSTED}'
                ) from error
    return arrays
