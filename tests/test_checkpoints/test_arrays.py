"""Plain pickles and numpy's archives: arrays are read, code is not."""

import os
import pickle

import numpy as np
import pytest
import torch

from pelk_mm.checkpoints.files import CheckpointError, read_checkpoint

ARRAYS = {'a': np.arange(4, dtype='>f4').reshape(2, 2), 'b': np.float64(3)}


def equal(found):
    return found.keys() == ARRAYS.keys() and all(
        np.array_equal(found[name], value) for name, value in ARRAYS.items()
    )


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_pickle(tmp_path, protocol):
    path = tmp_path / 'a.pkl'
    path.write_bytes(pickle.dumps(ARRAYS, protocol))
    assert equal(read_checkpoint(path))
    memory = bytearray if protocol == 5 else bytes  # of which older ones ask for code
    large = {'a': np.arange(1 << 15), 'b': memory(1 << 17), 'c': b'abc' * (1 << 16)}
    path.write_bytes(pickle.dumps(large | {'d': 0}, protocol))
    found = read_checkpoint(path)
    assert np.array_equal(found.pop('a'), large.pop('a'))
    assert found == large | {'d': 0}


def test_pickle_of_python_2(tmp_path):
    """Text there was bytes, and numpy's modules had other names."""
    path = tmp_path / 'a.pkl'
    path.write_bytes(
        b'\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00'
        b'\x85U\x01b\x87R(K\x01K\x01\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01'
        b'<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x04\x00\x00\x80\xbftbs.'
    )
    assert read_checkpoint(path) == {'a': np.array([-1], np.float32)}


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_archive(tmp_path, save):
    path = tmp_path / 'a.npz'
    save(path, **ARRAYS)
    assert equal(read_checkpoint(path))


class CallsSystem:
    def __reduce__(self):
        return os.system, ('touch executed',)


def saved_object(path):
    np.savez(path.with_suffix('.npz'), a=np.array([CallsSystem()], dtype=object))
    path.with_suffix('.npz').rename(path)


@pytest.mark.parametrize(
    ('write', 'message'),
    [
        (
            lambda path: path.write_bytes(pickle.dumps({'a': CallsSystem()})),
            r'a.pkl is a plain pickle and asks for posix.system, which could run code',
        ),
        (
            lambda path: path.write_bytes(pickle.dumps({'a': torch.ones(2)})),
            'asks for torch.*, which could run code; .* with torch.save',
        ),
        (
            saved_object,
            "has objects that are no numbers under 'a', which could run code",
        ),
        (
            lambda path: path.write_bytes(pickle.dumps(ARRAYS)[:-9]),
            'a.pkl is damaged or not a checkpoint',
        ),
        (
            lambda path: np.save(path.open('wb'), ARRAYS['a']),
            'a.pkl holds one array of numpy',
        ),
    ],
)
def test_refusals(tmp_path, monkeypatch, write, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'a.pkl'
    write(path)
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(path)
    assert '\n' not in str(error.value)
    assert str(error.value).count('a.pkl') == 1
    assert list(tmp_path.iterdir()) == [path]
