import argparse
import ast
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

import pelk_mm
from pelk_mm.checkpoints import load_weights_only, loaders
from pelk_mm.checkpoints.files import CheckpointError


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


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """Arguments of the downloads, each of which gets a file that asks for a type."""
    calls = []

    def download(url, model_dir, map_location, progress, weights_only):
        calls.append((url, model_dir, progress))
        path = tmp_path / 'remote.pth'
        torch.save({'extra': argparse.Namespace()}, path)
        return torch.load(path, map_location, weights_only=weights_only)

    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', download)
    return calls


# mmengine looks these names up in files of its own, torchvision's in torchvision.
@pytest.mark.parametrize(
    'source',
    [
        'https://example.org/remote.pth',
        'http://example.org/remote.pth',
        'torchvision://resnet50',
        'modelzoo://resnet50',
        'openmmlab://vgg16_caffe',
        'open-mmlab://vgg16_caffe',
        'mmcls://mobilenet_v2',
    ],
)
def test_downloads_are_loaded_with_weights_only(downloads, monkeypatch, source):
    monkeypatch.setattr(
        mmengine_checkpoint,
        'get_torchvision_models',
        lambda: dict(resnet50='https://example.org/resnet50.pth'),
    )
    with pytest.raises(CheckpointError, match=r'argparse\.Namespace, which could run'):
        CheckpointLoader.load_checkpoint(source, 'cpu')
    assert len(downloads) == 1


def test_http_loader_has_mmengines_arguments(downloads, tmp_path):
    replaced = inspect.signature(mmengine_checkpoint.load_from_http)
    [original] = (
        node
        for node in ast.parse(inspect.getsource(mmengine_checkpoint)).body
        if isinstance(node, ast.FunctionDef) and node.name == 'load_from_http'
    )
    assert [*replaced.parameters] == [arg.arg for arg in original.args.args]
    with pytest.raises(CheckpointError):
        mmengine_checkpoint.load_from_http(
            'https://example.org/a.pth', model_dir=str(tmp_path), progress=True
        )
    assert downloads == [('https://example.org/a.pth', str(tmp_path), True)]


@pytest.mark.parametrize('main', [True, False])
def test_rank_0_downloads_first(monkeypatch, main):
    module = inspect.getmodule(mmengine_checkpoint.load_from_http)
    order = []
    monkeypatch.setattr(module, 'is_main_process', lambda: main)
    monkeypatch.setattr(module, 'barrier', lambda: order.append('barrier'))
    monkeypatch.setattr(
        torch.hub,
        'load_state_dict_from_url',
        lambda url, **kwargs: order.append('download') or {},
    )
    CheckpointLoader.load_checkpoint('https://example.org/a.pth')
    assert order == (['download', 'barrier'] if main else ['barrier', 'download'])


LOAD = """
import sys
from mmengine.runner.checkpoint import CheckpointLoader
import pelk_mm
CheckpointLoader.load_checkpoint(sys.argv[1], 'cpu')
"""


def test_environment_variable_keeps_mmengines_loaders(tmp_path):
    paths = [str(Path(pelk_mm.__file__).parents[1]), os.environ.get('PYTHONPATH', '')]
    result = subprocess.run(
        [sys.executable, '-c', LOAD, 'gone.pth'],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join(filter(None, paths)),
            'PELK_MM_KEEP_LOADERS': '1',
        },
        cwd=tmp_path,
    )
    assert result.returncode == 1
    # mmengine's words; those of our loader are `gone.pth does not exist`.
    assert 'gone.pth can not be found' in result.stderr


@pytest.mark.parametrize(
    ('keep', 'expected'), [(None, False), ('', False), ('0', False), ('1', True)]
)
def test_values_of_the_environment_variable(monkeypatch, keep, expected):
    monkeypatch.delenv('PELK_MM_KEEP_LOADERS', raising=False)
    if keep is not None:
        monkeypatch.setenv('PELK_MM_KEEP_LOADERS', keep)
    assert loaders._keeps_loaders() is expected


def test_other_values_of_the_environment_variable_are_refused(monkeypatch):
    monkeypatch.setenv('PELK_MM_KEEP_LOADERS', 'yes')
    with pytest.raises(ValueError, match='PELK_MM_KEEP_LOADERS=yes is neither 0 nor 1'):
        loaders._keeps_loaders()
