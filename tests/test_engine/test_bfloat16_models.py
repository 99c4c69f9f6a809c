"""Segmenters and detectors of the three families train in bfloat16 on the CPU."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from pelk_mm.checkpoints import load_weights_only
from pelk_mm.engine import Bfloat16OptimWrapper
from scenes import write_dataset

from .precision_models import tensors

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
BACKBONES = ('pelk_t', 'slak_t', 'replknet_31b')

pytestmark = pytest.mark.skipif(get_device() != 'cpu', reason='mmengine finds a GPU')


@pytest.fixture(autouse=True, scope='module')
def _one_thread(one_thread):
    """Small models are faster on one thread."""


def load_segmenter(backbone, folder, narrow, draw_objects):
    write_dataset(folder / 'data', 0, {'training': 4, 'validation': 1})
    cfg = Config.fromfile(CONFIGS / f'upernet_{backbone}_ade20k.py')
    cfg = narrow(cfg, f'{folder.name}_{backbone}', folder)
    cfg.train_cfg.update(max_iters=4)
    cfg.default_hooks.checkpoint.interval = 2
    return cfg


def load_detector(backbone, folder, narrow, draw_objects):
    coco = draw_objects(folder / 'data' / 'train2017')
    (folder / 'data' / 'objects.json').write_text(json.dumps(coco))
    cfg = Config.fromfile(CONFIGS / f'cascade_mask_rcnn_{backbone}_coco.py')
    cfg = narrow(cfg, f'{folder.name}_{backbone}', folder)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.update(
            ann_file='objects.json', data_prefix=dict(img='train2017/'), indices=None
        )
        loader.dataset.metainfo = dict(classes=('balloon', 'kite', 'drone'))
    for head in (*cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        head.num_classes = 3
    cfg.train_cfg.max_epochs = 2
    cfg.default_hooks.checkpoint.interval = 1
    return cfg


LOADS = dict(segmenter=load_segmenter, detector=load_detector)


@pytest.fixture(params=BACKBONES)
def backbone(request):
    return request.param


@pytest.fixture(params=LOADS)
def cfg(request, backbone, narrow, draw_objects, tmp_path):
    """A config with everything that may take part in a training, for two steps."""
    cfg = LOADS[request.param](backbone, tmp_path, narrow, draw_objects)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(tmp_path / 'data')
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.model.backbone.with_cp = True
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    cfg.default_hooks.sparsity = dict(
        type='DynamicSparsityHook', growth='gradient', update_interval=1
    )
    cfg.optim_wrapper.update(
        type='AmpOptimWrapper',
        loss_scale='dynamic',
        constructor='LargeKernelLayerDecayOptimizerConstructor',
        paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise'),
        accumulative_counts=2,
        clip_grad=dict(max_norm=1.0),
    )
    return cfg


def train(cfg, name, **settings):
    """Trains and returns the runner and the last checkpoint."""
    cfg = cfg.copy()
    cfg.update(settings)
    cfg.work_dir = f'{cfg.work_dir}/{name}'
    cfg.experiment_name = cfg.visualizer.name = f'{cfg.experiment_name}_{name}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner, load_weights_only(Path(cfg.work_dir, 'last_checkpoint').read_text())


@pytest.mark.long
def test_one_step(cfg):
    cfg.work_dir = f'{cfg.work_dir}/step'
    cfg.optim_wrapper.accumulative_counts = 1
    runner = Runner.from_cfg(cfg)
    model = runner.model.train()
    wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    batch = next(iter(runner.build_dataloader(cfg.train_dataloader)))
    before = {name: param.clone() for name, param in model.named_parameters()}
    with wrapper.optim_context(model):
        data = model.data_preprocessor(batch, training=True)
        losses = model(**data, mode='loss')
    values = dict(tensors({k: v for k, v in losses.items() if 'loss' in k}))
    assert len(values) >= 2
    for name, loss in values.items():
        assert loss.dtype is torch.float32, name
        assert loss.isfinite(), name
    wrapper.update_params(model.parse_losses(losses)[0])
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > len(before) / 2
    assert all(param.dtype is torch.float32 for param in model.parameters())


ENTRIES = ('state_dict', 'ema_state_dict', 'optimizer', 'sparsity')


@pytest.mark.slow
def test_a_resumed_training_is_the_uninterrupted_one(cfg, tmp_path):
    runner, whole = train(cfg, 'whole')
    assert isinstance(runner.optim_wrapper, Bfloat16OptimWrapper)
    first = sorted((tmp_path / 'whole').glob('*_[12].pth'))[0]
    start = load_weights_only(first)
    resumed = train(cfg, 'resumed', resume=True, load_from=str(first))[1]
    for entry in ENTRIES:
        expected = dict(tensors(whole[entry]))
        assert expected.keys() == dict(tensors(resumed[entry])).keys()
        for name, tensor in tensors(resumed[entry]):
            assert torch.equal(tensor, expected[name]), (entry, name)
            if tensor.is_floating_point():
                assert tensor.dtype is torch.float32, (entry, name)
                assert tensor.isfinite().all(), (entry, name)
    changed = [
        name
        for name, tensor in tensors(start['state_dict'])
        if not torch.equal(tensor, whole['state_dict'][name.lstrip('.')])
    ]
    assert len(changed) > len(start['state_dict']) / 2
