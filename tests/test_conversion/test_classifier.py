"""Classifiers with their norm and linear layer, as models of mmpretrain."""

import pytest
import torch

from pelk_mm.checkpoints.files import CheckpointError, read_checkpoint
from pelk_mm.conversion.convert import convert_checkpoint
from pelk_mm.conversion.report import Report, fitting_configs
from pelk_mm.layers import PooledLayerNorm
from pelk_mm_cli import config_folder

GOLDEN = {'slak': 'slak51_cls_small', 'replknet': 'replknet31_cls_small'}


@pytest.fixture
def golden(shared):
    """Loads what the authors' code computes."""

    def load(family):
        path = shared / 'golden' / f'{GOLDEN[family]}.pt'
        return torch.load(path, weights_only=True)

    return load


def logits(build, state_dict, backbone, x):
    """What mmpretrain's ImageClassifier does, as our pre-training configs build it."""

    def part(prefix):
        names = (name for name in state_dict if name.startswith(prefix))
        return {name.removeprefix(prefix): state_dict[name] for name in names}

    model = build(backbone)
    model.load_state_dict(part('backbone.'))
    maps = model(x)
    if part('neck.'):
        neck = PooledLayerNorm(maps[-1].shape[1])
        neck.load_state_dict(part('neck.'))
        (features,) = neck(maps)
    else:
        features = maps[-1].mean((-2, -1))
    linear = part('head.fc.')
    return features @ linear['weight'].T + linear['bias']


@torch.no_grad()
@pytest.mark.parametrize('family', ['slak', 'replknet'])
def test_logits_are_those_of_the_authors(golden, convert, build, family):
    reference = golden(family)
    report, written = convert(reference['checkpoint'], classifier=True)
    assert report.complete
    assert report.whole
    weights = written['state_dict']
    ours = logits(build, weights, report.backbone, reference['input'])
    torch.testing.assert_close(ours, reference['outputs'][0], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize('family', ['slak', 'replknet'])
def test_released_to_classifier_to_backbone(small, save, convert, tmp_path, family):
    """The same backbone as of the released file, whichever way it goes."""
    model, released = small(family)
    released = {k: v for k, v in released.items() if not k.startswith('norm')}
    released |= {'norm.weight': torch.rand(16), 'norm.bias': torch.rand(16)}
    if family == 'replknet':
        released |= {'norm.running_mean': torch.rand(16)}
        released |= {'norm.running_var': torch.rand(16)}
        released |= {'norm.num_batches_tracked': torch.tensor(3)}
    released |= {'head.weight': torch.rand(5, 16), 'head.bias': torch.rand(5)}
    report, written = convert(released, 'whole.pth', classifier=True)
    assert report.complete
    norm = 'neck.' if family == 'slak' else 'backbone.norm1.'
    assert torch.equal(written['state_dict'][f'{norm}bias'], released['norm.bias'])
    assert torch.equal(written['state_dict']['head.fc.bias'], released['head.bias'])

    # To itself, and back to the backbone alone.
    again = convert_checkpoint(tmp_path / 'whole.pth', tmp_path / 'again.pth')
    assert again.complete
    assert again.backbone == report.backbone
    assert again.converted.keys() == report.converted.keys()
    alone = convert_checkpoint(
        tmp_path / 'whole.pth', tmp_path / 'alone.pth', prefix=''
    )
    assert alone.complete
    direct, expected = convert(released, 'direct.pth')
    assert alone.backbone == direct.backbone
    weights = read_checkpoint(tmp_path / 'alone.pth')['state_dict']
    assert weights.keys() == expected['state_dict'].keys()
    assert all(torch.equal(weights[k], v) for k, v in expected['state_dict'].items())


def test_pelk_classifier_from_slaks(small, convert):
    _, released = small()
    released = {k: v for k, v in released.items() if not k.startswith('norm')}
    released |= {'norm.weight': torch.rand(16), 'norm.bias': torch.rand(16)}
    released |= {'head.weight': torch.rand(5, 16), 'head.bias': torch.rand(5)}
    report, written = convert(released, classifier=True, warm_start='pelk')
    assert report.backbone['type'] == 'PeLK'
    assert report.backbone['output_norms'] is False
    assert torch.equal(written['state_dict']['neck.bias'], released['norm.bias'])


def test_configs_that_fit_a_classifier():
    backbone = dict(type='PeLK', arch='tiny', out_indices=(3,), output_norms=False)
    names = dict.fromkeys(('backbone.x', 'neck.weight', 'head.fc.weight'), '')
    report = Report('', backbone=backbone, whole=True, converted=names)
    assert fitting_configs(report, config_folder()) == [
        'configs/pretrain/pelk_t_120e_in1k.py',
        'configs/pretrain/pelk_t_300e_in1k.py',
    ]


def test_no_classifier_to_keep(small, convert):
    _, released = small()
    with pytest.raises(CheckpointError, match='it has no classifier to keep'):
        convert(released, classifier=True)


def test_classifier_without_its_prefix(small, convert):
    _, released = small()
    with pytest.raises(CheckpointError, match="kept with the prefix 'backbone.'"):
        convert(released, classifier=True, prefix='')
