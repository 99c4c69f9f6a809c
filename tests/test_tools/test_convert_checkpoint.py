"""The command line: exit codes, the report, bad files."""

import importlib.util
import json
import os
import pickle
import re
import sys
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from pelk_mm.backbones import SLaK
from pelk_mm.checkpoints import from_released, to_released
from pelk_mm.conversion.infer import infer_backbone
from pelk_mm.conversion.report import Report, fitting_configs

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'convert_checkpoint.py'
spec = importlib.util.spec_from_file_location('convert_checkpoint', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def released():
    """The released state dict of a tiny SLaK."""
    arch = dict(channels=[4, 6], depths=[1, 1], kernel_sizes=[7, 5], small_kernel=3)
    torch.manual_seed(0)
    model = SLaK(arch, out_indices=(0, 1))
    return to_released(model.state_dict(), 'slak').converted


def saved(content, **kwargs):
    buffer = BytesIO()
    torch.save(content, buffer, **kwargs)
    return buffer.getvalue()


def changed(**values):
    """The released state dict with other tensors; ``__`` stands for a dot."""
    return released() | {key.replace('__', '.'): v for key, v in values.items()}


class CallsSystem:
    def __reduce__(self):
        return os.system, ('touch executed',)


def archive(compression, name):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as file:
        file.writestr(name, b'x' * 100)
    return buffer.getvalue()


def flipped():
    """A file in which one bit of a weight has changed."""
    weights = released()
    data = saved(weights)
    weight = weights['stages.0.0.pwconv1.weight'].numpy().tobytes()
    start = data.index(weight)
    return data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :]


def mmdet_1():
    weights = {f'backbone.{key}': value for key, value in released().items()}
    heads = ('rpn_head.rpn_conv.weight', 'bbox_head.0.fc_cls.weight')
    return {'state_dict': weights | dict.fromkeys(heads, torch.zeros(1))}


def without(name):
    return {key: value for key, value in released().items() if key != name}


GAMMA = 'stages__0__0__gamma'
BAD_FILES = {
    'empty': (lambda: b'', 'is empty; download it again'),
    'truncated': (lambda: saved(released())[:-100], 'is truncated: its end is missing'),
    'page': (lambda: b'\n<!DOCTYPE html><html>', 'is a web page, not weights'),
    'pointer': (
        lambda: b'version https://git-lfs.github.com/spec/v1',
        'Git LFS pointer',
    ),
    'text': (
        lambda: b'hello',
        'is not a checkpoint: neither torch.save nor safetensors',
    ),
    'pickle': (
        lambda: pickle.dumps({'a': [1]}),
        "its top level holds 'a' of type list where weights have tensors by name",
    ),
    'pickle of tensors': (
        lambda: pickle.dumps(released()),
        'src.pth is a plain pickle and asks for torch.* load it and save its weights',
    ),
    'older pickle': (lambda: pickle.dumps({}, 0), 'is not a checkpoint: neither'),
    'array of text': (
        lambda: saved(changed(**{GAMMA: np.array(['a'])})),
        'stages.0.0.gamma is an array of <U1; weights are floating-point numbers',
    ),
    'two backbones': (
        lambda: saved({'student': released(), 'teacher': released()}),
        'it has 2 backbones; choose one with --from-prefix student. or --from',
    ),
    'unknown heads': (
        lambda: saved(
            {f'backbone.{key}': value for key, value in released().items()}
            | {'panoptic_head.weight': torch.zeros(1)}
        ),
        r"nothing has a place for panoptic_head.weight \(--prefix '' leaves the heads",
    ),
    'flipped bit': (flipped, 'the checksum of its record'),
    'code': (
        lambda: saved({'model': {}, 'x': CallsSystem()}),
        'asks for .*system, which',
    ),
    'code, older format': (
        lambda: saved(CallsSystem(), _use_new_zipfile_serialization=False),
        'asks for .*system, which could run code',
    ),
    'older format, truncated': (
        lambda: saved(released(), _use_new_zipfile_serialization=False)[:-100],
        r'is damaged or not a checkpoint \(',
    ),
    'compressed': (
        lambda: archive(zipfile.ZIP_DEFLATED, 'a/data.pkl'),
        'is a compressed archive',
    ),
    'other archive': (
        lambda: archive(zipfile.ZIP_STORED, 'a/readme'),
        'is an archive without weights',
    ),
    'program': (
        lambda: archive(zipfile.ZIP_STORED, 'a/constants.pkl'),
        'is a TorchScript program',
    ),
    'safetensors': (
        lambda: b'\xff' * 7 + b'\x00{"a":1}',
        'is damaged or not a checkpoint',
    ),
    'list': (lambda: saved([1, 2]), 'it holds a list, not weights'),
    'numbers': (
        lambda: saved({'state_dict': {'a': 1}}),
        "its state_dict holds 'a' of type int where weights have tensors by name",
    ),
    'numbered': (
        lambda: saved({1: torch.zeros(1)}),
        'tensor under 1, which is not a name',
    ),
    'control characters': (
        lambda: saved(changed(**{'a\x1b[2Jb': torch.zeros(1)})),
        r"it has a tensor under 'a\\x1b\[2Jb', which is not a name",
    ),
    'nothing': (lambda: saved({}), 'its state dict is empty'),
    'averaged only': (lambda: saved({'model_ema': released()}), 'give --ema'),
    'other network': (
        lambda: saved({'layer1.0.conv1.weight': torch.zeros(1)}),
        'its names, layer1.0.conv1.weight, are not those of PeLK, SLaK or RepLKNet',
    ),
    'ConvNeXt': (
        lambda: saved({k: v for k, v in released().items() if 'large' not in k}),
        'its blocks have no large kernel, as those of ConvNeXt',
    ),
    'mmdet 1.x': (lambda: saved(mmdet_1()), 'its heads are those of mmdet 1.x'),
    'other size': (
        lambda: saved(changed(stages__0__0__pwconv1__weight=torch.zeros(8, 4))),
        r'stages.0.0.pwconv1.weight is \(8, 4\) where a SLaK of its size has \(16, 4\)',
    ),
    'something missing': (
        lambda: saved(without('stages.1.0.gamma')),
        'is incomplete: it lacks stages.1.0.gamma; nothing was written',
    ),
    'something more': (
        lambda: saved(changed(more=torch.zeros(1))),
        'is incomplete: nothing has a place for more; nothing was written',
    ),
    'NaN': (
        lambda: saved(changed(**{GAMMA: torch.full((4,), torch.nan)})),
        r'1 of its tensors hold NaN or infinity \(first: stages.0.0.gamma\)',
    ),
    'infinity': (
        lambda: saved(changed(**{GAMMA: torch.full((4,), -torch.inf)})),
        'hold NaN or infinity',
    ),
    'repeated memory': (
        lambda: saved(changed(**{GAMMA: torch.zeros(1).expand(4)})),
        'stages.0.0.gamma repeats one value instead of holding all',
    ),
    'no memory': (
        lambda: saved(changed(**{GAMMA: torch.zeros(4, device='meta')})),
        'stages.0.0.gamma is a tensor without values',
    ),
    'booleans': (
        lambda: saved(changed(**{GAMMA: torch.zeros(4, dtype=torch.bool)})),
        'stages.0.0.gamma is of torch.bool',
    ),
    'sparse tensor': (
        lambda: saved(changed(**{GAMMA: torch.zeros(4).to_sparse()})),
        'stages.0.0.gamma is a sparse or quantized tensor',
    ),
}


@pytest.mark.parametrize('kind', BAD_FILES)
def test_bad_files_get_one_sentence(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['tools/convert_checkpoint.py'])
    if kind == 'safetensors':
        pytest.importorskip('safetensors')
    make, message = BAD_FILES[kind]
    (tmp_path / 'src.pth').write_bytes(make())
    (tmp_path / 'dst.pth').write_text('mine')
    before = sorted(tmp_path.iterdir())
    assert tool.main(['src.pth', 'dst.pth', '--force']) == 1
    err = capsys.readouterr().err
    assert err.count('\n') == 1
    assert err.startswith('convert_checkpoint.py: ')
    assert 'src.pth' in err
    assert re.search(message, err), err
    assert (tmp_path / 'dst.pth').read_text() == 'mine'
    assert sorted(tmp_path.iterdir()) == before  # nothing executed, no halves


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['nowhere.pth', 'new.pth'], 'nowhere.pth does not exist'),
        (['.', 'new.pth'], '. is a folder; give a checkpoint file'),
        (['src.pth', 'dst.pth'], 'dst.pth exists and is kept; .* give --force'),
        (['src.pth', 'new.onnx'], 'new.onnx has none of the endings .pth, .pt, .safe'),
        (['src.pth', 'no/new.pth'], 'not a file in an existing folder'),
        (['src.pth', 'new.pth', '--warm-start', 'pelk-huge'], "has no arch 'huge'"),
        (['src.pth', 'new.pth', '--warm-start', 'pelk-tiny'], 'its channels are'),
        (
            ['src.pth', 'new.pth', '--from-prefix', 'a'],
            "no .* start with 'a'; give --fr",
        ),
        (['http://127.0.0.1:1/a', 'new.pth'], '127.0.0.1:1/a names no checkpoint file'),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    torch.save(released(), 'src.pth')
    Path('dst.pth').write_text('mine')
    assert tool.main(argv) == 1
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert Path('dst.pth').read_text() == 'mine'


@pytest.mark.parametrize(
    ('option', 'value', 'message'),
    [
        ('--warm-start', 'slak', "'slak' is not pelk or pelk-ARCH"),
        ('--in-channels', '0', '--in-channels 0 is not a positive number'),
        ('--json', 'no/report.json', 'no/report.json is in no existing folder'),
    ],
)
def test_wrong_command_lines(capsys, option, value, message):
    with pytest.raises(SystemExit) as error:
        tool.main(['src.pth', 'dst.pth', option, value])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_report_on_screen_and_in_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = released()
    for value in weights.values():
        if value.ndim == 2:
            value[:, ::2] = 0
    weights |= {'head.weight': torch.zeros(5, 6)}
    torch.save({'model': weights, 'epoch': 3}, 'src.pth')
    argv = ['src.pth', 'dst.pth', '--json', 'report.json']
    assert tool.main([*argv, '--dry-run']) == 0
    dry = capsys.readouterr().out
    assert not Path('dst.pth').exists()
    assert tool.main(argv) == 0
    out = capsys.readouterr().out
    assert out == dry + 'dst.pth written and verified\n'
    report = json.loads(Path('report.json').read_text())
    assert report['complete'] is True
    assert report['error'] is None
    assert len(report['converted']) == len(weights) - 1
    assert report['dropped'].keys() == {'epoch', 'head.weight'}
    assert report['densities']['stages.0.blocks.0.pointwise_conv1.weight'] == 0.5
    assert f'{len(weights) - 1} tensors converted' in out
    assert (
        'dropped (what a training run keeps in addition to the weights): epoch' in out
    )
    assert '0.500 stages.0.blocks.0.pointwise_conv1.weight' in out
    assert str(report['backbone']['arch']['channels']) in out


def test_incomplete_is_written_on_demand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(without('stages.1.0.gamma'), 'src.pth')
    argv = ['src.pth', 'dst.pth', '--no-strict', '--json', 'report.json']
    assert tool.main(argv) == 3
    assert 'dst.pth has the rest' in capsys.readouterr().err
    assert len(torch.load('dst.pth', weights_only=True)['state_dict']) > 20
    report = json.loads(Path('report.json').read_text())
    assert report['complete'] is False
    assert report['missing'] == ['stages.1.0.gamma']
    assert report['error'].startswith('src.pth is incomplete')


def test_warm_start_prints_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(released(), 'src.pth')
    assert tool.main(['src.pth', 'dst.pth', '--warm-start', 'pelk']) == 0
    out = capsys.readouterr().out
    assert 'stage 0: kernels projected with a relative error of 0.' in out
    assert 'stage 1: kernels projected with a relative error of 0.' in out


def test_file_of_the_web(tmp_path, monkeypatch, capsys):
    """What the server gave may be a page; it is kept, and the way out is named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    Path('checkpoints').mkdir()
    path = tmp_path / 'checkpoints/a.pth'
    url = 'https://example.org/a.pth'
    path.write_text('<html>')
    assert tool.main([url, 'dst.pth']) == 1
    err = capsys.readouterr().err
    assert f'{path} is a web page' in err
    assert f'It is what {url} gave; to download that again, delete {path}' in err
    torch.save({'model': released()}, path)
    assert tool.main([url, 'dst.pth']) == 0
    assert f'{path}: slak' in capsys.readouterr().out


def test_options_of_other_layouts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = {f'teacher.{name}': value for name, value in released().items()}
    averaged = {f'module.{name}': value + 1 for name, value in weights.items()}
    content = {'state_dict': weights, 'ema_state_dict': averaged}
    torch.save(content, 'src.pth')
    argv = ['src.pth', 'dst.pth', '--no-ema', '--from-prefix', 'teacher']
    assert tool.main([*argv, '--in-channels', '4', '--json', 'report.json']) == 0
    out = capsys.readouterr().out
    assert 'the backbone is under teacher. (--from-prefix teacher.)' in out
    assert 'stem: 3 input channels became 4; ' in out
    assert "src.pth: slak under 'ema_state_dict'" in out
    assert '(the averaged weights; leave out --no-ema to take them): state_dict' in out
    assert "'in_channels': 4" in out
    written = torch.load('dst.pth', weights_only=True)['state_dict']
    name = 'stages.0.0.gamma'
    assert torch.equal(
        written['stages.0.blocks.0.gamma'], weights[f'teacher.{name}'] + 1
    )
    report = json.loads(Path('report.json').read_text())
    assert report['prefix'] == 'teacher.'
    assert len(report['notes']) == 2


@pytest.mark.parametrize(
    ('name', 'fits', 'not_fits'),
    [
        ('slak_t_downstream', ['upernet_slak_t_ade20k'], ['upernet_slak_s_ade20k']),
        (
            'replknetxl_cls',
            ['upernet_replknet_xl_ade20k', 'cascade_mask_rcnn_replknet_xl_coco'],
            ['upernet_replknet_31b_ade20k'],
        ),
    ],
)
def test_fitting_configs(shared, name, fits, not_fits):
    manifest = json.loads((shared / f'golden/manifests/{name}.json').read_text())
    family = 'slak' if 'slak' in name else 'replknet'
    converted = from_released(manifest, family).converted
    shapes = {key: tuple(shape) for key, shape in converted.items()}
    report = Report('src.pth', backbone=infer_backbone(shapes, family))
    configs = {Path(path).stem for path in fitting_configs(report, ROOT / 'configs')}
    assert configs >= set(fits)
    assert not configs & set(not_fits)
    names = ('backbone.a', 'decode_head.b', 'auxiliary_head.b')
    report = replace(report, whole=True, converted=dict.fromkeys(names, ''))
    configs = {Path(path).stem for path in fitting_configs(report, ROOT / 'configs')}
    assert all(config.startswith('upernet') for config in configs)
    assert fits[0] in configs


@pytest.mark.parametrize(
    'change',
    [
        dict(norm_cfg=None),
        dict(out_indices=(1, 2, 3)),
        dict(in_channels=4),
        dict(layer_scale_init_value=0),
        dict(small_kernel_merged=True),
    ],
)
def test_configs_of_other_tensors_do_not_fit(tmp_path, change):
    backbone = dict(
        type='SLaK', arch='tiny', norm_cfg=dict(type='SyncBN'), layer_scale_init_value=1
    )
    path = tmp_path / 'upernet_slak_t_mine.py'
    path.write_text(f'model = dict(backbone={backbone})')
    report = Report('src.pth', backbone=dict(type='SLaK', arch='tiny'))
    assert [Path(config).stem for config in fitting_configs(report, tmp_path)] == [
        path.stem
    ]
    other = replace(report, backbone=report.backbone | change)
    assert fitting_configs(other, tmp_path) == []
