import argparse
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import get_flops as tool
from pelk_mm.backbones import PeLK

ROOT = Path(__file__).resolve().parents[2]
NARROW = """
_base_ = {base!r}
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            channels=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            kernel_sizes=[51, 49, 47, 13],
            central_radius=2,
        )
    ),
    decode_head=dict(in_channels=[8, 16, 24, 32]),
    auxiliary_head=dict(in_channels=24),
)
"""
ARCH = dict(
    channels=[8, 16, 24, 32],
    depths=[1, 1, 1, 1],
    kernel_sizes=[51, 49, 47, 13],
    central_radius=2,
)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'narrow.py'
    base = str(ROOT / 'configs' / 'upernet_pelk_t_ade20k.py')
    path.write_text(NARROW.format(base=base))
    return path


@pytest.fixture
def get_flops(run_command):
    return lambda *arguments: run_command(tool.main, 'get_flops.py', *arguments)


def rows(result):
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith('| ')][1:]
    return {
        name.strip(): [cell.strip() for cell in cells]
        for _, name, *cells, _ in (line.split('|') for line in lines)
    }


def test_components_and_paper_sparsity(get_flops, config):
    result = get_flops(config)
    assert 'image of 512 x 2048 (H x W), 40% zeros' in result.stdout
    table = rows(result)
    assert list(table) == ['backbone', 'decode_head', 'auxiliary_head', 'all']
    parameters, nonzeros, papers, computed = table['backbone']
    assert float(nonzeros.split()[0]) < float(parameters.split()[0])
    assert float(computed.split()[0]) < float(papers.split()[0])
    assert table['auxiliary_head'][2:] == ['in training only'] * 2


def test_shape_and_zeros_of_a_checkpoint(get_flops, config, tmp_path):
    state = {name: torch.zeros_like(p) for name, p in PeLK(ARCH).state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'zeros.pth')
    result = get_flops(
        config, '--shape', '64', '96', '--checkpoint', tmp_path / 'zeros.pth'
    )
    assert 'image of 64 x 96' in result.stdout
    assert rows(result)['backbone'][1] == '0.00 M'


def test_checkpoints_that_the_converter_reads(get_flops, config, tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    state = PeLK(ARCH).state_dict()
    save_file(state, tmp_path / 'a.safetensors')
    # The released files hold their training script's arguments too.
    content = {'model': state, 'args': argparse.Namespace()}
    torch.save(content, tmp_path / 'a.pth')
    for name in ('a.safetensors', 'a.pth'):
        result = get_flops(config, '--checkpoint', tmp_path / name)
        parameters, nonzeros, *_ = rows(result)['backbone']
        assert nonzeros == parameters


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--sparsity', '1.5'], 'sparsity 1.5 is not in [0, 1)'),
        (['--shape', '8', '2048'], 'an image of 8 x 2048 is too small'),
        (['--checkpoint', 'gone.pth'], 'gone.pth does not exist'),
        (['--checkpoint', 'list.pth'], 'it holds a list, not weights'),
    ],
)
def test_bad_input_ends_in_one_line(
    get_flops, config, tmp_path, monkeypatch, arguments, message
):
    torch.save([1], tmp_path / 'list.pth')
    monkeypatch.chdir(tmp_path)
    result = get_flops(config, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith('get_flops.py: ')


NEW_STYLE = """
from mmseg.models import EncoderDecoder, FCNHead, SegDataPreProcessor
from pelk_mm.backbones import {kind}

model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(type=SegDataPreProcessor, size=(64, 96)),
    backbone=dict(type={kind}, arch={arch!r}),
    decode_head=dict(
        type=FCNHead, in_channels=32, in_index=3, channels=8, num_classes=5
    ),
    auxiliary_head=[
        dict(type=FCNHead, in_channels=24, in_index=2, channels=8, num_classes=5),
        dict(type=FCNHead, in_channels=16, in_index=1, channels=8, num_classes=5),
    ],
)
"""
PLAIN = {key: value for key, value in ARCH.items() if key != 'central_radius'}


@pytest.mark.parametrize(
    ('kind', 'arch', 'zeros'),
    [('PeLK', ARCH, '40%'), ('SLaK', PLAIN, '40%'), ('RepLKNet', PLAIN, '0%')],
)
def test_sparsity_and_framework_of_classes(get_flops, tmp_path, kind, arch, zeros):
    path = tmp_path / 'new_style.py'
    path.write_text(NEW_STYLE.format(kind=kind, arch=arch))
    result = get_flops(path)
    assert f'image of 64 x 96 (H x W), {zeros} zeros' in result.stdout
    assert rows(result)['auxiliary_head'][2:] == ['in training only'] * 2
    assert '>=' not in result.stdout


def test_our_own_demonstration(get_flops):
    result = get_flops(ROOT / 'configs/demo/upernet_pelk_narrow_drawn_scenes.py')
    assert list(rows(result))[:2] == ['backbone', 'decode_head']
    assert '>=' not in result.stdout


CLASSIFIER = """
from torch.nn import AdaptiveAvgPool2d
from pelk_mm.backbones import SLaK
from {module} import Classifier

model = dict(type=Classifier, backbone=dict(type=SLaK, arch={arch!r}, out_indices=[3]))
test_pipeline = [
    dict(type='ResizeEdge', scale=80),
    dict(type='CenterCrop', crop_size=64),
]
test_dataloader = dict(dataset=dict(type='ImageNet', pipeline=test_pipeline))
"""
CLASS = """
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn

class Classifier(BaseModel):
    'As ImageClassifier of mmpretrain, with neck and head.'

    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.neck = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(32, 10)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.head(self.neck(self.backbone(inputs)[-1]).flatten(1))
"""


def test_classifier(get_flops, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'classifier_of_a_test.py').write_text(CLASS)
    (tmp_path / 'classifier.py').write_text(
        CLASSIFIER.format(module='classifier_of_a_test', arch=PLAIN)
    )
    result = get_flops(tmp_path / 'classifier.py')
    assert 'image of 64 x 64 (H x W), 40% zeros' in result.stdout
    table = rows(result)
    assert list(table) == ['backbone', 'head', 'all']
    assert table['head'][0] == '0.00 M'  # of 330 parameters


def test_framework_that_is_not_installed(get_flops, tmp_path):
    if find_spec('mmpretrain'):
        pytest.skip('mmpretrain is installed')
    path = tmp_path / 'classifier.py'
    path.write_text(
        "default_scope = 'mmpretrain'\nmodel = dict(type='ImageClassifier')\n"
    )
    result = get_flops(path)
    assert result.returncode == 1
    message = (
        'it is written for mmpretrain, which is not installed; `pip install mmpretr'
    )
    assert message in result.stderr.splitlines()[-1]
