from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from pelk_mm.analysis.open_backbone import (
    ARCHITECTURES,
    arch_config,
    find_architecture,
    find_backbone,
    load_backbone,
    random_backbone,
)
from pelk_mm.analysis.stage_kernels import stage_kernels
from pelk_mm.backbones import PeLK, SLaK
from pelk_mm.checkpoints.files import CheckpointError

from .narrow_kernels import COMMON, CONFIGS, PARTS, SIZES


def files(backbone, folder, key='state_dict', prefix=''):
    state = {f'{prefix}{n}': v.clone() for n, v in backbone.state_dict().items()}
    path = folder / 'weights.pth'
    torch.save({key: state} if key else state, path)
    return path


#: What the names of a file start with, another for each kind.
PREFIXES = dict(
    zip(CONFIGS, ['', 'backbone.', 'module.backbone.', '', 'backbone.'], strict=True)
)


def test_loading_any_form(kind, trained, tmp_path):
    prefix = PREFIXES[kind]
    cfg = {**CONFIGS[kind], **COMMON}
    expected = stage_kernels(trained, 1)
    loaded = load_backbone(cfg, 'backbone', files(trained, tmp_path, prefix=prefix))
    for form in ('trained', 'deployed'):
        found = stage_kernels(loaded, 1)
        assert len(found.blocks[0].parts) == len(
            stage_kernels(trained, 1).blocks[0].parts
        )
        for a, b in zip(expected.blocks, found.blocks, strict=True):
            torch.testing.assert_close(a.kernel(), b.kernel(), rtol=1e-4, atol=1e-6)
        if form == 'trained':
            trained.switch_to_deploy()
            path = files(trained, tmp_path, prefix=prefix)
            loaded = load_backbone(cfg, 'backbone', path)


@pytest.mark.parametrize('name', ['slak', 'replknet'])
def test_merged_weights_and_configs_of_other_forms(name, tmp_path):
    cfg = {**CONFIGS[name], **COMMON}
    merged = random_backbone({**cfg, 'small_kernel_merged': True})
    path = files(merged, tmp_path)
    for form in ({}, dict(deploy=True)):
        found = load_backbone({**cfg, **form}, 'backbone', path)
        assert len(stage_kernels(found, 0).blocks[0].parts) == len(PARTS[name]) - 1
    path = files(random_backbone(cfg), tmp_path)
    found = load_backbone({**cfg, 'deploy': True}, 'backbone', path)
    assert len(stage_kernels(found, 0).blocks[0].parts) == len(PARTS[name])


def test_averages_alone(tmp_path):
    backbone = random_backbone({**CONFIGS['pelk'], **COMMON})
    path = files(backbone, tmp_path, key='model_ema')
    load_backbone({**CONFIGS['pelk'], **COMMON}, 'backbone', path)


def test_weights_that_do_not_fit(tmp_path):
    cfg = {**CONFIGS['pelk'], **COMMON}
    path = files(random_backbone({**CONFIGS['slak'], **COMMON}), tmp_path)
    with pytest.raises(CheckpointError, match='weights.pth: .*does not fit'):
        load_backbone(cfg, 'backbone', path)
    backbone = random_backbone(cfg)
    with torch.no_grad():
        backbone.stages[0].position_embedding[0, 0, 0] = float('nan')
    with pytest.raises(CheckpointError, match='weights.pth: .*NaN'):
        load_backbone(cfg, 'backbone', files(backbone, tmp_path))
    (tmp_path / 'weights.pth').write_bytes(b'')
    with pytest.raises(CheckpointError, match='weights.pth is empty'):
        load_backbone(cfg, 'backbone', tmp_path / 'weights.pth')


def test_random_weights_are_the_same_each_time():
    cfg = {**CONFIGS['pelk'], **COMMON}
    state = torch.get_rng_state()
    first, second = random_backbone(cfg), random_backbone(cfg)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_names_of_architectures():
    assert ARCHITECTURES['pelk-tiny-101'] == (PeLK, 'tiny-101')
    assert ARCHITECTURES['slak-large'] == (SLaK, 'large')
    assert find_architecture('RepLKNet-31b') == 'replknet-31B'
    assert arch_config('PeLK-tiny-101') == dict(type=PeLK, arch='tiny-101')
    with pytest.raises(ValueError, match=r"'pelk-tiny-11'; did you mean pelk-tiny-101"):
        find_architecture('pelk-tiny-11')
    with pytest.raises(ValueError, match=r"'vit'; choose one of pelk-tiny, "):
        find_architecture('vit')


def test_backbone_of_a_model():
    model = dict(
        type='Wrapper',
        teacher=dict(type='ResNet'),
        students=[dict(type='Model', backbone=CONFIGS['slak'])],
    )
    cfg, name = find_backbone(Config(dict(model=model)))
    assert cfg['arch'] == SIZES
    assert name == 'students.0.backbone'
    empty = SimpleNamespace(get=dict(model=dict(type='ResNet')).get, filename='a.py')
    with pytest.raises(ValueError, match='a.py has no backbone of PeLK, SLaK, RepLK'):
        find_backbone(empty)
