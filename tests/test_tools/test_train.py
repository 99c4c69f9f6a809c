"""`pelk-mm train --pretrained`: the backbone of a checkpoint, by one flag."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.checkpoints.guard import backbone_init
from pelk_mm.engine import launch

ARCH = dict(channels=[8, 12, 16, 24], depths=[1, 1, 1, 1], kernel_sizes=[13, 11, 9, 7])


@pytest.fixture
def classifier(tmp_path):
    """What a pre-training with EMA and sparsity saves, and the backbone's average."""
    cfg = dict(
        type='PeLK',
        arch=ARCH | dict(central_radius=2),
        out_indices=(3,),
        output_norms=False,
    )
    averaged = MODELS.build(cfg).state_dict()
    for weight in averaged.values():
        if weight.ndim in (2, 4):
            weight *= torch.rand(weight.shape) > 0.4
    weights = {f'backbone.{name}': weight for name, weight in averaged.items()}
    weights['neck.weight'] = weights['neck.bias'] = torch.ones(24)
    weights['head.fc.weight'], weights['head.fc.bias'] = (
        torch.ones(5, 24),
        torch.ones(5),
    )
    others = {f'module.{name}': weight + 1 for name, weight in weights.items()}
    path = tmp_path / 'epoch_300.pth'
    torch.save(dict(meta={}, state_dict=weights, ema_state_dict=others), path)
    return path, averaged


def test_init_cfg_of_each_kind_of_file(classifier, tmp_path):
    path, weights = classifier
    assert backbone_init(str(path)) == dict(
        type='Pretrained', checkpoint=str(path), prefix='backbone.'
    )
    alone = tmp_path / 'alone.pth'
    torch.save(dict(state_dict=weights), alone)
    assert backbone_init(str(alone)) == dict(type='Pretrained', checkpoint=str(alone))
    two = {
        f'{name}.{k}': v for name in ('teacher', 'student') for k, v in weights.items()
    }
    torch.save(dict(state_dict=two), tmp_path / 'two.pth')
    with pytest.raises(CheckpointError, match='has 2 backbones; choose one by --cfg-'):
        backbone_init(str(tmp_path / 'two.pth'))
    torch.save(dict(state_dict=dict(a=torch.ones(1))), tmp_path / 'none.pth')
    with pytest.raises(CheckpointError, match='none.pth has no backbone of PeLK, SLaK'):
        backbone_init(str(tmp_path / 'none.pth'))


def test_flag_becomes_an_init_cfg(run_tool, classifier, monkeypatch):
    """Of UperNet, before the framework's own tool reads the command line."""
    handed = []
    monkeypatch.setattr(
        launch, 'hand_over', lambda tool: handed.append((tool, sys_argv()))
    )
    path, averaged = classifier
    run_tool('tools/train.py', 'x.py', '--pretrained', path, '--amp')
    ((tool, arguments),) = handed
    assert tool == 'train'
    assert arguments[:2] == ['x.py', '--amp']
    start = arguments.index('--cfg-options')
    options = dict(option.split('=', 1) for option in arguments[start + 1 :])
    cfg = Config(dict(model=dict(backbone=dict(type='PeLK'))))
    cfg.merge_from_dict(options)
    backbone = MODELS.build(
        dict(
            **cfg.model.backbone,
            arch=ARCH | dict(central_radius=2),
        )
    )
    backbone.init_weights()
    for name, weight in averaged.items():
        assert torch.equal(backbone.state_dict()[name], weight)


def sys_argv():
    import sys

    return sys.argv[1:]


def test_file_that_is_none(run_tool, tmp_path):
    finished = run_tool('tools/train.py', 'x.py', '--pretrained', tmp_path / 'gone.pth')
    assert finished.returncode == 1
    assert finished.stderr.startswith('train: ')
    assert 'gone.pth' in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
