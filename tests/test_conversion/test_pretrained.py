"""Pretrained weights in released names fail before a backbone starts at random."""

import argparse
import shlex

import pytest
import torch
from mmengine.model import PretrainedInit
from mmengine.runner import load_checkpoint

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.conversion.convert import convert_checkpoint

from .test_convert import wrappers

PELK = dict(
    type='PeLK',
    arch=dict(channels=[8, 16], depths=[1, 2], kernel_sizes=[11, 9], central_radius=2),
    out_indices=(0, 1),
)


def pretrained(model, path):
    model.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    return model


def command_of(error):
    return shlex.split(str(error.value).splitlines()[1])


@pytest.mark.parametrize('wrapper', wrappers({}))
@pytest.mark.parametrize('family', ['slak', 'replknet'])
def test_released_file_names_the_command(small, save, family, wrapper):
    model, released = small(family)
    content, kwargs = wrappers(released)[wrapper]
    if kwargs:  # such a file must have nothing else
        content = {'model_ema': released}
    path = save(content, 'a file.pth')
    with pytest.raises(CheckpointError, match='has the released names') as error:
        pretrained(model, path).init_weights()
    ema = ['--ema'] if kwargs else []
    assert command_of(error) == [
        'pelk-mm',
        'convert_checkpoint',
        str(path),
        str(path.with_name('a file_pelk_mm.pth')),
        *ema,
    ]


@pytest.mark.parametrize('kind', ['mmengine.Pretrained', PretrainedInit])
def test_other_spellings_of_the_type(small, save, kind):
    model, released = small()
    cfg = dict(type=kind, checkpoint=str(save(released)))
    model.init_cfg = [dict(type='Constant', val=1, layer='Conv2d'), cfg]
    with pytest.raises(CheckpointError, match='has the released names') as error:
        model.init_weights()
    assert command_of(error)[1] == 'convert_checkpoint'


def test_the_command_is_right(small, save, build):
    model, released = small()
    content = {'model': released, 'args': argparse.Namespace()}
    with pytest.raises(CheckpointError) as error:
        pretrained(build(PELK), save(content)).init_weights()
    *_, source, destination, option, value = command_of(error)
    assert option == '--warm-start'
    convert_checkpoint(source, destination, warm_start=value)
    pelk = build(PELK)
    pretrained(pelk, destination).init_weights()
    assert torch.equal(pelk.norm1.weight, model.norm1.weight)


def test_named_pelk_asks_for_its_own_sizes(small, save, build):
    path = save(small()[1])
    with pytest.raises(CheckpointError) as error:
        pretrained(build(dict(type='PeLK', arch='tiny-101')), path).init_weights()
    assert command_of(error)[-2:] == ['--warm-start', 'pelk-tiny-101']


def test_pelk_of_unnamed_sizes_takes_those_of_the_source(small, save, build):
    grids = [(4, 3, 4), (3, 3, 3)]
    pelk = build(PELK | dict(arch=PELK['arch'] | dict(sharing_grids=grids)))
    with pytest.raises(CheckpointError, match='has the released names') as error:
        pretrained(pelk, save(small()[1])).init_weights()
    assert command_of(error)[-2:] == ['--warm-start', 'pelk']


def test_other_family(small, save):
    path = save(small('replknet')[1])
    with pytest.raises(CheckpointError, match='RepLKNet checkpoint, but .* is SLaK'):
        pretrained(small('slak')[0], path).init_weights()


def test_downloaded_file(small, save, monkeypatch, tmp_path):
    (tmp_path / 'checkpoints').mkdir()
    save({'model': small()[1], 'args': argparse.Namespace()}, 'checkpoints/a.pth')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    model = pretrained(small()[0], 'https://example.org/weights/a.pth?download=1')
    with pytest.raises(CheckpointError) as error:
        model.init_weights()
    assert command_of(error)[2] == str(tmp_path / 'checkpoints/a.pth')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_converted_file_loads(small, save, tmp_path, suffix):
    if suffix == '.safetensors':
        pytest.importorskip('safetensors')
    model, released = small()
    path = tmp_path / f'dst{suffix}'
    convert_checkpoint(save(released), path, prefix='backbone.')
    other, _ = small()
    other.init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    other.init_weights()
    for a, b in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_missing_file_is_left_to_the_loader_to_report(small, tmp_path):
    with pytest.raises(CheckpointError, match='does not exist'):
        pretrained(small()[0], tmp_path / 'nowhere.pth').init_weights()


@pytest.mark.parametrize('family', ['slak', 'replknet'])
def test_loading_a_whole_model_in_released_names_fails_too(small, save, family):
    model, released = small(family)
    whole = torch.nn.ModuleDict({'backbone': model})
    state_dict = {f'backbone.{name}': value for name, value in released.items()}
    path = save({'state_dict': state_dict})
    with pytest.raises(CheckpointError, match='has the released names of'):
        load_checkpoint(whole, str(path))
