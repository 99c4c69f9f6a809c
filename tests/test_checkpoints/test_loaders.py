"""What mmengine gets from its replaced loaders, of files that could be anything."""

import pytest
import torch
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from pelk_mm.checkpoints.files import CheckpointError


def load(path):
    return CheckpointLoader.load_checkpoint(str(path), 'cpu')


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (b'', 'is empty'),
        (b'PK\x03\x04', 'is truncated'),
        (b'<!DOCTYPE html>', 'is a web page'),
        (b'\x80\x02K\x07.', 'holds a int, not weights by name'),
        ([1, 2], 'holds a list, not weights by name'),
        ({'state_dict': 3}, 'holds a int, not weights by name'),
        (
            {'state_dict': {3: torch.zeros(1)}},
            'has a tensor under 3, which is no',
        ),
        ({None: torch.zeros(1)}, 'has a tensor under None, which is no'),
        ({'a': torch.zeros(1).expand(1 << 40)}, 'repeats values'),
    ],
    ids=['empty', 'cut', 'page', 'int', 'list', 'wrapper', 'name', 'none', 'repeated'],
)
def test_one_error_for_whatever_is_wrong(tmp_path, content, reason):
    path = tmp_path / 'a.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf'a\.pth {reason}'):
        load_checkpoint(nn.Linear(1, 1), str(path), map_location='cpu')


def test_damage_that_checksums_show(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'state_dict': {'weight': torch.ones(64, 64)}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b'\x00\x00\x80\x3f' * 8)] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='checksum of its record'):
        load(path)


def test_text_of_a_config_is_not_handed_to_what_would_run_it(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'meta': {'config': 'x = 1', 'iter': 3}, 'state_dict': {}}, path)
    assert load(path)['meta'] == {'iter': 3}


def test_loaded_tensors_are_not_in_the_file(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'state_dict': {'weight': torch.ones(512, 512)}}, path)
    weight = load(path)['state_dict']['weight']
    path.write_bytes(bytes(path.stat().st_size))  # as mmengine's own hook overwrites it
    assert weight.sum() == 512 * 512
