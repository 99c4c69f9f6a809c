import argparse
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.runner.checkpoint import CheckpointLoader

from pelk_mm.checkpoints import load_weights_only


@pytest.fixture
def message_hub():
    hub = MessageHub.get_instance('test_checkpoint')
    for number in (torch.tensor(1.5), np.float32(2.5), np.float64(3.5), 4):
        hub.update_scalar('train/loss', number)
    hub.update_info('best', np.float32(0.5))
    hub.update_info('flags', np.array([True, False]))
    return hub


def test_mmengine_checkpoint_loads_through_its_own_loader(tmp_path, message_hub):
    path = tmp_path / 'iter_1.pth'
    torch.save({'message_hub': message_hub.state_dict()}, path)
    loaded = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert history.mean() == 2.875
    assert history.current() == 4
    assert loaded['message_hub']['runtime_info']['best'] == np.float32(0.5)
    assert loaded['message_hub']['runtime_info']['flags'].tolist() == [True, False]


@pytest.mark.parametrize(
    'dtype', ['bool', 'int8', 'int32', 'int64', 'uint8', 'float16', 'float32', 'f8']
)
def test_numpy_numbers_load(tmp_path, dtype):
    array = np.arange(4).astype(dtype)
    torch.save({'array': array, 'number': array[1]}, tmp_path / 'a.pth')
    loaded = load_weights_only(tmp_path / 'a.pth')
    np.testing.assert_array_equal(loaded['array'], array)
    assert loaded['number'] == array[1]
    assert loaded['array'].dtype == array.dtype


class CallsGetattr:
    """Pickles into a call of ``getattr``, the way out of an allow-list."""

    def __init__(self, owner, name):
        self.args = owner, name

    def __reduce__(self):
        return getattr, self.args


@pytest.mark.parametrize(
    ('payload', 'named'),
    [
        (argparse.Namespace(lr=1), r'argparse\.Namespace'),
        ({'deep': [pickle.Unpickler]}, r'pickle\.Unpickler'),
        (CallsGetattr(torch.Tensor, 'numpy'), 'numpy'),
        (CallsGetattr(np.ndarray, 'tofile'), 'tofile'),
    ],
)
def test_other_types_are_refused_by_name(tmp_path, payload, named):
    path = tmp_path / 'bad.pth'
    torch.save({'state_dict': {}, 'extra': payload}, path)
    with pytest.raises(pickle.UnpicklingError, match=named):
        load_weights_only(path)


def test_refusal_does_not_widen_what_torch_itself_loads(tmp_path, message_hub):
    path = tmp_path / 'iter_1.pth'
    torch.save(message_hub.state_dict(), path)
    load_weights_only(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth does not exist'):
        load_weights_only(tmp_path / 'nowhere.pth')


def test_http_loader_asks_for_weights_only(monkeypatch, tmp_path):
    path = tmp_path / 'remote.pth'
    torch.save({'extra': argparse.Namespace()}, path)

    def download(url, map_location, weights_only):
        assert url == 'https://example.org/remote.pth'
        return torch.load(path, map_location, weights_only=weights_only)

    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', download)
    with pytest.raises(pickle.UnpicklingError, match=r'argparse\.Namespace'):
        CheckpointLoader.load_checkpoint('https://example.org/remote.pth', 'cpu')
