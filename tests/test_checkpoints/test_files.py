"""Writing what reads back as it is; memory that is a tensor's own."""

import pytest
import torch

from pelk_mm.checkpoints import files
from pelk_mm.checkpoints.files import (
    CheckpointError,
    own_memory,
    read_checkpoint,
    write_checkpoint,
)

WEIGHTS = {'a': torch.arange(4.0), 'b': torch.tensor(3)}


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_what_does_not_read_back_gets_no_name(tmp_path, monkeypatch, suffix):
    if suffix == '.safetensors':
        pytest.importorskip('safetensors')
    path = tmp_path / f'a{suffix}'
    read = files.read_checkpoint

    def read_wrongly(temporary):
        content = read(temporary)
        content['state_dict']['a'] = -content['state_dict']['a']  # -0.0 == 0.0
        return content

    monkeypatch.setattr(files, 'read_checkpoint', read_wrongly)
    with pytest.raises(CheckpointError, match='reads back wrongly at a'):
        write_checkpoint(path, WEIGHTS, meta={})
    assert list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError('PytorchStreamWriter failed writing file\nat frame 1')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(CheckpointError, match='cannot be written: .* writing file$'):
        write_checkpoint(tmp_path / 'a.pth', WEIGHTS, meta={})
    assert list(tmp_path.iterdir()) == []


def test_no_such_folder(tmp_path):
    path = tmp_path / 'nowhere' / 'a.pth'
    with pytest.raises(CheckpointError, match='cannot be written'):
        write_checkpoint(path, WEIGHTS, meta={})


def test_own_memory_does_not_copy():
    whole = torch.arange(10.0)
    part = own_memory(whole[2:6].view(2, 2))
    assert part.tolist() == [[2, 3], [4, 5]]
    assert part.untyped_storage().nbytes() == 16
    whole[2] = 7
    assert part[0, 0] == 7
    assert own_memory(whole[::2]).tolist() == whole[::2].tolist()


def test_meta_survives_both_formats(tmp_path):
    pytest.importorskip('safetensors')
    for name in ('a.pth', 'a.safetensors'):
        write_checkpoint(
            tmp_path / name, WEIGHTS, meta=dict(backbone=dict(type='SLaK'))
        )
        content = read_checkpoint(tmp_path / name)
        assert content['meta'] == dict(backbone=dict(type='SLaK'))
        assert all(torch.equal(content['state_dict'][k], v) for k, v in WEIGHTS.items())
