"""A file that stands for far more than it holds is refused before anybody copies it."""

import io
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest
import torch

from pelk_mm.checkpoints.bounds import MARGIN, MAX_DEPTH, require_bounded
from pelk_mm.checkpoints.files import CheckpointError, read_checkpoint


def nested(depth):
    node = [torch.zeros(1)]
    for _ in range(depth - 1):
        node = [node]
    return node


def doubled(times):
    node = [1, 2]
    for _ in range(times):
        node = [node, node]
    return node


def cyclic():
    node = {'a': torch.zeros(2)}
    node['list'] = [node]
    return node


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ({'a': torch.zeros(1).expand(1 << 40)}, 'repeats values instead of holding'),
        ([{'x': (torch.zeros(1, 1).expand(1 << 14, 1 << 14),)}], 'repeats values'),
        (dict.fromkeys(range(999), torch.zeros(1 << 16)), 'repeats values'),
        (doubled(40), 'repeats containers instead of holding'),
        (cyclic(), 'contains itself'),
        (nested(MAX_DEPTH + 1), f'deeper than {MAX_DEPTH}'),
        (
            torch.sparse_coo_tensor([[0], [0]], [1.0], (1 << 30, 1 << 30)),
            'repeats values',
        ),
        ({'a': torch.empty(1 << 40, device='meta')}, 'repeats values'),
    ],
    # Their texts would be as long as what they pretend to be.
    ids=['vector', 'matrix', 'tied', 'doubled', 'cycle', 'depth', 'sparse', 'meta'],
)
@pytest.mark.parametrize('zipped', [True, False])
def test_more_than_the_file_holds(tmp_path, content, reason, zipped):
    path = tmp_path / 'a.pth'
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=rf'a\.pth .*{reason}'):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match=reason):
        require_bounded(content, path.stat().st_size)


def test_what_files_do_share_is_accepted(tmp_path):
    tied = torch.randn(64, 64)
    content = {
        'state_dict': {
            'a': tied,
            'b': tied,
            'c': tied.T,
            'd': torch.zeros(1).expand(9),
        },
        'deep': nested(MAX_DEPTH - 2),
        'same': doubled(10),
    }
    path = tmp_path / 'a.pth'
    torch.save(content, path)
    assert read_checkpoint(path)['state_dict'].keys() == set('abcd')


def chain(times):
    """A pickle that encodes bytes as hexadecimal digits, and these, again and again."""
    call = b'c_codecs\nencode\n' * times + pickle.dumps(b'x' * 64, 4)[2:-1]
    name = pickle.dumps('hex', 2)[2:-1]
    return b'\x80\x02' + call + (name + b'\x86R') * times + b'.'


def bytearray_of(count):
    number = pickle.dumps((count,), 2)[2:-1]
    return b'\x80\x02c__builtin__\nbytearray\n' + number + b'R.'


def legacy(content):
    """A file in the format before PyTorch 1.6 with another pickle in it."""
    file = io.BytesIO()
    torch.save(7, file, _use_new_zipfile_serialization=False)
    parts = file.getvalue()
    return parts.replace(pickle.dumps(7, 2), content)


def zipped(content):
    file = io.BytesIO()
    torch.save({}, file)
    result = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(result, 'w') as new:
        for entry in old.infolist():
            is_pickle = entry.filename.endswith('data.pkl')
            new.writestr(entry.filename, content if is_pickle else old.read(entry))
    return result.getvalue()


@pytest.mark.parametrize('wrap', [zipped, legacy, bytes])
@pytest.mark.parametrize(
    'content',
    [
        chain(60),
        bytearray_of(1 << 33),
        b'\x80\x02}r\xff\xff\xff\x1f.',  # a slot of the memo
        b'\x80\x02X\xff\xff\xff\x7f.',
        b'\x80\x04\x8d' + struct.pack('<Q', 1 << 62) + b'.',
        b'\x80\x05\x96' + struct.pack('<Q', 1 << 31) + b'.',
        b'\x80\x04\x95' + struct.pack('<Q', 1 << 62) + b'.',
    ],
    ids=[
        'codec',
        'bytearray',
        'memo',
        'string',
        'long string',
        'bytearray of its own',
        'frame',
    ],
)
def test_pickle_that_asks_for_memory(tmp_path, wrap, content):
    path = tmp_path / 'a.pkl'
    path.write_bytes(wrap(content))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = ''
    try:
        read_checkpoint(path)
    except CheckpointError as error:  # a slot of a memo that is a dict is nothing bad
        said = str(error)
    # Else it would be taken where there is so much.
    assert wrap is not bytes or 'MemoryError' not in said
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 256 << 10  # KiB


def test_packed_arrays_of_a_thousand_times_the_size(tmp_path):
    path = tmp_path / 'a.npz'
    np.savez_compressed(path, a=np.zeros(MARGIN // 4 + (1 << 20), np.float32))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match=r'a\.npz would take 7.* bytes unpacked'):
        read_checkpoint(path)
    np.savez_compressed(path, a=np.zeros(1 << 18, np.float32))
    assert read_checkpoint(path)['a'].size == 1 << 18
