"""The configs of configs/pretrain, as far as they can be read without mmpretrain."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS
from torch import nn

from pelk_mm.backbones import RepLKNet
from pelk_mm.layers import PooledLayerNorm

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / 'configs' / 'pretrain').glob('*.py'))
PLAIN = [f'{family}_{size}' for family in ('pelk', 'slak') for size in 'tsb']
EXPECTED = {
    *(f'{name}_{e}e_in1k' for name in (*PLAIN, 'replknet_31b') for e in (300, 120)),
    *(f'pelk_{size}_101_300e_in1k' for size in 'tsb'),
    *(f'pelk_{size}_101_384_30e_in1k' for size in 'tsb'),
    'pelk_b_384_30e_in1k',
}
ARCHS = {'t': 'tiny', 's': 'small', 'b': 'base', '31b': '31B'}
DROP_PATHS = {'t': 0.1, 's': 0.4, 'b': 0.5, '31b': 0.5}

read = cache(Config.fromfile)


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def cfg(path):
    return Config(read(path).to_dict())


@cache
def build(text):
    """The backbone of a config on the meta device, once for all that share it."""
    with torch.device('meta'):
        return MODELS.build(Config.fromstring(text, '.json').backbone)


def named(path):
    """Family, size and epochs that a config's name says, and whether it is at 384."""
    family, size, *rest, epochs, data = path.stem.split('_')
    assert data == 'in1k'
    arch = ARCHS[size] + '-101' * ('101' in rest)
    return family, size, arch, int(epochs.removesuffix('e')), '384' in rest


def test_every_model_of_the_papers_has_its_config():
    assert {path.stem for path in PATHS} == EXPECTED


def test_leaves_are_short(path):
    assert len(path.read_text().splitlines()) <= 30


def test_backbone_is_ours_and_head_fits(path, cfg):
    family, _, arch, _, _ = named(path)
    backbone = cfg.model.backbone
    assert backbone.type.startswith('pelk_mm.')  # mmpretrain has a RepLKNet too
    assert backbone.type.lower() == f'pelk_mm.{family}'
    assert backbone.arch == arch
    shape = {**backbone, 'drop_path_rate': 0.0}
    model = build(json.dumps(dict(backbone=shape)))
    assert type(model).__module__.startswith('pelk_mm.backbones')
    assert cfg.model.head['in_channels'] == model.channels[-1]
    assert cfg.model.head.num_classes == cfg.model.data_preprocessor.num_classes
    norms = [name for name, _ in model.named_children() if name.startswith('norm')]
    if isinstance(model, RepLKNet):
        assert norms == ['norm3']
        assert cfg.model.neck.to_dict() == dict(type='GlobalAveragePooling')
    else:
        assert norms == []
        assert MODELS.get(cfg.model.neck.type) is PooledLayerNorm
        assert cfg.model.neck.channels == model.channels[-1]
    # All stages are trained, though only the last one's map is returned.
    assert model.out_indices == (3,)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_recipe(path, cfg):
    family, size, _, epochs, fine_tuned = named(path)
    step = 8 * cfg.train_dataloader.batch_size * cfg.optim_wrapper.accumulative_counts
    assert step == (512 if fine_tuned else 2048 if family == 'replknet' else 4096)
    # mmengine multiplies the rate by GPUs x batch_size over this.
    assert (
        cfg.auto_scale_lr.base_batch_size * cfg.optim_wrapper.accumulative_counts
        == step
    )
    assert cfg.optim_wrapper.optimizer.lr == (5e-5 if fine_tuned else 4e-3)
    assert cfg.optim_wrapper.optimizer.weight_decay == (1e-8 if fine_tuned else 0.05)
    drop_path = DROP_PATHS[size]
    if path.stem.startswith('pelk_b') and fine_tuned:
        drop_path = 0.8
    if path.stem == 'replknet_31b_120e_in1k':
        drop_path = 0.3
    assert cfg.model.backbone.drop_path_rate == drop_path

    assert cfg.train_cfg.max_epochs == epochs
    *warm_up, decay = cfg.param_scheduler
    begin = 0 if fine_tuned else 10 if family == 'replknet' else 20
    assert (decay.begin, decay.end, decay.eta_min) == (begin, epochs, 1e-6)
    assert [each.end for each in warm_up] == [begin] * (not fine_tuned)
    assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval

    assert cfg.model.head.loss.label_smooth_val == 0.1
    if fine_tuned:
        assert cfg.model.train_cfg is None
        assert 'ema' not in cfg.default_hooks
    else:
        augments = [augment.type for augment in cfg.model.train_cfg.augments]
        assert augments == ['Mixup', 'CutMix']
        ema = cfg.default_hooks.ema
        assert ema.momentum == 1e-4
        assert ema.interval == cfg.optim_wrapper.accumulative_counts


def test_sparsity(path, cfg):
    family, size, _, _, fine_tuned = named(path)
    assert ('sparsity' in cfg.default_hooks) == (family != 'replknet')
    if family == 'replknet':
        return
    hook = HOOKS.build(cfg.default_hooks.sparsity)
    assert (hook.sparsity, hook.mode, hook.init) == (0.4, 'auto', 'snip')
    if not fine_tuned:
        assert (hook.update_interval, hook.prune_rate) == (
            (2000, 0.5) if size == 't' else (100, 0.3)
        )


def test_images(path, cfg):
    side = 384 if named(path)[-1] else 224
    steps = {step['type']: step for step in cfg.train_dataloader.dataset.pipeline}
    assert list(steps) == [
        'LoadImageFromFile',
        'RandomResizedCrop',
        'RandomFlip',
        'RandAugment',
        'RandomErasing',
        'PackInputs',
    ]
    assert steps['RandomResizedCrop']['scale'] == side
    assert steps['RandAugment']['magnitude_level'] == 9
    assert steps['RandomErasing']['erase_prob'] == 0.25
    steps = {step['type']: step for step in cfg.val_dataloader.dataset.pipeline}
    if side == 224:
        assert steps['CenterCrop']['crop_size'] == side
        assert steps['ResizeEdge']['scale'] == 256
    else:
        assert steps['Resize']['scale'] == side
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.train_dataloader.dataset.data_root == 'data/imagenet'


@pytest.mark.parametrize('name', ['pelk_t_300e_in1k', 'pelk_t_101_384_30e_in1k'])
def test_weight_decay_and_rates(name):
    cfg = Config.fromfile(ROOT / 'configs' / 'pretrain' / f'{name}.py')
    with torch.device('meta'):
        model = nn.ModuleDict(
            dict(
                backbone=MODELS.build(cfg.model.backbone),
                neck=MODELS.build(cfg.model.neck),
                head=nn.Linear(998, 1000),
            )
        )
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    names = {parameter: name for name, parameter in model.named_parameters()}
    decay = cfg.optim_wrapper.optimizer.weight_decay
    rates = {}
    for group in optimizer.param_groups:
        for parameter in group['params']:
            name_of = names[parameter]
            flat = parameter.ndim < 2 or 'position_embedding' in name_of
            assert group['weight_decay'] == (0 if flat else decay), name_of
            rates[name_of] = group['lr']
    assert rates.keys() == set(names.values())
    stem, last = rates['backbone.downsample_layers.0.0.weight'], rates['head.weight']
    assert last == cfg.optim_wrapper.optimizer.lr
    assert stem == pytest.approx(last * cfg.optim_wrapper.paramwise_cfg.decay_rate**7)


def test_pooled_norm():
    neck = PooledLayerNorm(5)
    nn.init.uniform_(neck.weight)
    nn.init.uniform_(neck.bias)
    x = torch.rand(2, 5, 3, 4)
    mean = x.mean((2, 3))
    spread = ((mean - mean.mean(1, keepdim=True)) ** 2).mean(1, keepdim=True)
    expected = (mean - mean.mean(1, keepdim=True)) / (spread + 1e-6).sqrt()
    (out,) = neck((None, x))
    torch.testing.assert_close(out, expected * neck.weight + neck.bias)


@pytest.mark.parametrize('kind', ['PeLK', 'SLaK'])
def test_backbone_without_output_norms(kind):
    """Its map is the one that norm3 would be given."""
    arch = dict(channels=[4, 6, 8, 12], depths=[1] * 4, kernel_sizes=[7] * 4)
    if kind == 'PeLK':
        arch['central_radius'] = 2
    cfg = dict(type=kind, arch=arch, out_indices=(3,))
    normed, bare = MODELS.build(cfg), MODELS.build(cfg | dict(output_norms=False))
    weights = normed.state_dict()
    bare.load_state_dict({k: v for k, v in weights.items() if 'norm3' not in k})
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(
        normed.eval().norm3(bare.eval()(x)[0]).contiguous(), normed(x)[0]
    )


@pytest.mark.parametrize('kind', ['PeLK', 'SLaK'])
def test_maps_are_channels_last_in_training(kind):
    """From the stem's LayerNorm on, as cuDNN wants them for large kernels."""
    arch = dict(channels=[4, 6, 8, 12], depths=[1] * 4, kernel_sizes=[7] * 4)
    if kind == 'PeLK':
        arch['central_radius'] = 2
    model = MODELS.build(dict(type=kind, arch=arch)).train()
    seen = []
    for stage in model.stages:
        stage.register_forward_hook(
            lambda _, args, out: seen.extend(
                each.is_contiguous(memory_format=torch.channels_last)
                for each in (args[0], out)
            )
        )
    model(torch.rand(2, 3, 64, 64))
    assert seen == [True, True] * 4
