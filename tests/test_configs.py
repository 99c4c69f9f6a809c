"""Every published config: it builds at full size, and trains and evaluates narrowed.

Of configs that differ in numbers alone, such as the sizes of a backbone, one is trained
narrowed; with `-m slow` the others are too.
"""

import json
import math
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    PARAM_SCHEDULERS,
    init_default_scope,
)
from mmengine.runner import Runner

from pelk_mm.checkpoints.files import read_checkpoint
from pelk_mm.conversion.convert import convert_checkpoint

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
SIZES = {
    'pelk': ('t', 's', 'b', 't_101', 's_101', 'b_101'),
    'slak': ('t', 's', 'b'),
    'replknet': ('31b', '31b_22k', '31l', 'xl'),
}
EXPECTED = {
    f'{head}_{family}_{size}_{data}'
    for head, data in (('upernet', 'ade20k'), ('cascade_mask_rcnn', 'coco'))
    for family, sizes in SIZES.items()
    for size in sizes
} | {'upernet_replknet_31b_cityscapes', 'fcos_replknet_31b_coco'}

#: Those that are trained narrowed, one of each structure.
TRAINED = {
    'upernet_pelk_t_ade20k',
    'upernet_slak_t_ade20k',
    'upernet_replknet_31b_ade20k',
    'upernet_replknet_31b_cityscapes',
    'upernet_replknet_xl_ade20k',
    'cascade_mask_rcnn_pelk_t_coco',
    'cascade_mask_rcnn_slak_t_coco',
    'cascade_mask_rcnn_replknet_31b_coco',
    'cascade_mask_rcnn_replknet_xl_coco',
    'fcos_replknet_31b_coco',
}
#: Those of them that the default suite trains: a segmenter and a detector.
QUICK = {'upernet_pelk_t_ade20k', 'cascade_mask_rcnn_slak_t_coco'}


read = cache(Config.fromfile)


def load(path):
    cfg = deepcopy(read(path))
    init_default_scope(cfg.default_scope)
    return cfg


@pytest.fixture(scope='module', params=CONFIGS, ids=lambda path: path.stem)
def path(request):
    """Each config in turn; what is built of it serves several tests."""
    return request.param


@pytest.fixture
def cfg(path):
    return load(path)


def one_of_each_structure(names):
    """Parameters of a test: those of `QUICK`, then of `TRAINED`, then the others."""

    def marks(name):
        if name in QUICK:
            return ()
        return pytest.mark.long if name in TRAINED else pytest.mark.slow

    return [pytest.param(name, marks=marks(name)) for name in sorted(names)]


@pytest.fixture(scope='module')
def model(path):
    """The model at full size, without memory for its weights."""
    cfg = load(path)
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def test_every_model_of_the_papers_has_its_config():
    assert {path.stem for path in CONFIGS} == EXPECTED


def test_model_builds_at_full_size(path, cfg, model):
    model.eval()
    maps = model.backbone(torch.empty(1, 3, 256, 320, device='meta'))
    assert [tuple(x.shape[-2:]) for x in maps] == [
        (64, 80),
        (32, 40),
        (16, 20),
        (8, 10),
    ]
    if cfg.default_scope == 'mmseg':
        height, width = model.decode_head(maps).shape[-2:]
        assert (height, width) == (64, 80)
        assert model.auxiliary_head(maps).shape[-2:] == (16, 20)
        assert cfg.model.data_preprocessor.size == cfg.crop_size
        assert cfg.model.test_cfg.crop_size == cfg.crop_size
    else:
        assert len(model.neck(maps)) == 5
    low_level = 'xl' in path.stem
    assert cfg.model.data_preprocessor.mean == (
        [127.5] * 3 if low_level else [123.675, 116.28, 103.53]
    )
    assert cfg.model.data_preprocessor.std == (
        [127.5] * 3 if low_level else [58.395, 57.12, 57.375]
    )


RATES = {  # of the output's layer and of the stem, drop path
    'upernet_pelk_t': (1e-4, 0.9**7, 0.4),
    'upernet_pelk_s': (1e-4, 0.9**13, 0.4),
    'upernet_pelk_b': (1e-4, 0.9**13, 0.4),
    'cascade_mask_rcnn_pelk_t': (2e-4, 0.7**7, 0.4),
    'cascade_mask_rcnn_pelk_s': (2e-4, 0.7**13, 0.6),
    'cascade_mask_rcnn_pelk_b': (2e-4, 0.8**13, 0.7),
    'upernet_replknet': (2e-4, 1.0, 0.5),
    'cascade_mask_rcnn_replknet': (2e-4, 1.0, 0.6),
    'fcos_replknet': (2e-4, 1.0, 0.6),
}


def test_optimizer_and_schedule(path, cfg, model):
    model.train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    optimizer = optim_wrapper.optimizer
    names = {parameter: name for name, parameter in model.named_parameters()}
    group_of = {
        names[parameter]: group
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    assert len(group_of) == len(names)

    recipe = path.stem.replace('slak', 'pelk')
    lr, stem_scale, drop_path = next(
        value for key, value in RATES.items() if recipe.startswith(key)
    )
    stem = next(n for n in group_of if n.startswith('backbone.downsample_layers.0'))
    assert group_of[stem]['lr'] == pytest.approx(lr * stem_scale)
    assert cfg.model.backbone.drop_path_rate == drop_path
    for name, group in group_of.items():
        if not name.startswith('backbone.'):
            assert group['lr'] == pytest.approx(lr)
        module = model.get_submodule(name.rpartition('.')[0])
        is_norm = 'Norm' in type(module).__name__
        assert group['weight_decay'] == (
            0.0
            if is_norm
            or ('replknet' not in path.stem and group_of[stem]['lr'] != lr)
            and (model.get_parameter(name).ndim == 1 or 'position_emb' in name)
            else 0.05
        )

    schedulers = [
        PARAM_SCHEDULERS.build(dict(**scheduler, optimizer=optimizer))
        for scheduler in cfg.param_scheduler
    ]
    warm_up, decay = schedulers
    assert warm_up.begin == 0
    if cfg.default_scope == 'mmseg':
        assert decay.end == cfg.train_cfg.max_iters
        assert decay.begin == warm_up.end == 1500
        assert cfg.train_cfg.max_iters == (80e3 if 'cityscapes' in path.stem else 160e3)
        assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval
    else:
        assert decay.end == cfg.train_cfg.max_epochs
        assert list(decay.milestones) == ([16, 22] if 'fcos' in path.stem else [27, 33])
        assert cfg.train_cfg.max_epochs == (24 if 'fcos' in path.stem else 36)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size


def test_hooks_are_built(cfg):
    for name, hook in cfg.default_hooks.items():
        if name != 'visualization':  # wants a run's visualizer
            HOOKS.build(hook)
    assert ('sparsity' in cfg.default_hooks) == (cfg.model.backbone.type != 'RepLKNet')


def with_data(cfg, path, shared, street):
    """The config on the small data sets, loading in this process."""
    roots = {
        'ade20k': shared / 'data' / 'ade20k_sample' / 'ADEChallengeData2016',
        'coco': shared / 'data' / 'tiny_coco',
        'cityscapes': street,
    }
    if cfg.default_scope == 'mmdet':
        cfg.val_evaluator.ann_file = str(
            roots['coco'] / cfg.val_dataloader.dataset.ann_file
        )
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(roots[path.stem.rpartition('_')[2]])
        loader.num_workers = 0
        loader.persistent_workers = False
    return cfg


@pytest.mark.parametrize('name', one_of_each_structure(EXPECTED))
def test_pipelines_on_a_sample(name, shared, street):
    path = ROOT / 'configs' / f'{name}.py'
    cfg = with_data(load(path), path, shared, street)
    METRICS.build(cfg.val_evaluator)
    np.random.seed(0)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    sample = dataset[0]
    if cfg.default_scope == 'mmseg':
        assert sample['data_samples'].gt_sem_seg.shape == sample['inputs'].shape[1:]
        assert max(sample['inputs'].shape[1:]) <= max(cfg.crop_size)
        assert len(dataset.metainfo['classes']) == cfg.model.decode_head.num_classes
    else:
        instances = sample['data_samples'].gt_instances
        assert ('masks' in instances) == ('cascade' in path.stem)
        assert sample['inputs'].shape[-1] <= 1333
        assert max(sample['inputs'].shape[1:]) >= 480
    # What the released XL config lacks: training that sees no test pipeline.
    steps = [step['type'] for step in cfg.train_dataloader.dataset.pipeline]
    assert 'RandomFlip' in steps
    assert steps.index('LoadAnnotations') == 1

    cfg.val_dataloader.dataset.test_mode = True
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    sample = dataset[0]
    height, width = sample['data_samples'].ori_shape
    long, short = cfg.val_dataloader.dataset.pipeline[1].scale
    factor = min(long / max(height, width), short / min(height, width))
    assert sample['inputs'].shape[1:] == (
        pytest.approx(height * factor, abs=1),
        pytest.approx(width * factor, abs=1),
    )


def structure(node):
    """A config without its numbers: what configs of one structure share."""
    if isinstance(node, dict):
        return {key: structure(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [structure(value) for value in node]
    is_number = isinstance(node, (int, float)) and not isinstance(node, bool)
    return 'number' if is_number else node


def test_one_config_of_each_structure_is_trained(narrow):
    structures = {}
    for path in CONFIGS:
        cfg = narrow(load(path), path.stem, 'work_dir').to_dict()
        del cfg['visualizer'], cfg['experiment_name']  # they name the config
        text = json.dumps(structure(cfg), sort_keys=True)
        structures.setdefault(text, set()).add(path.stem)
    trained = [names & TRAINED for names in structures.values()]
    assert all(len(names) == 1 for names in trained), trained
    assert set.union(*trained) == TRAINED


@pytest.mark.parametrize('name', one_of_each_structure(EXPECTED))
@pytest.mark.usefixtures('one_thread')
def test_narrowed_copy_trains_and_evaluates(
    name, narrow, shared, street, tmp_path, monkeypatch
):
    # Formatting the config for the log takes longer than the training.
    monkeypatch.setattr(Config, 'pretty_text', '')
    path = ROOT / 'configs' / f'{name}.py'
    cfg = narrow(with_data(load(path), path, shared, street), path.stem, tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    losses, _ = scalars['train/loss'].data
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    metrics = ['mIoU'] if cfg.default_scope == 'mmseg' else ['coco/bbox_mAP']
    if 'cascade' in name:
        metrics.append('coco/segm_mAP')
    for metric in metrics:
        assert math.isfinite(scalars[f'val/{metric}'].current())
    curves = Path(runner.log_dir) / 'vis_data'
    lines = (curves / 'scalars.json').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    if find_spec('tensorboard'):
        written = event_scalars(curves)
        for key in ('loss', 'lr', *metrics):
            logged = [record[key] for record in records if key in record]
            assert len(logged) == (1 if key in metrics else 2)
            # TensorBoard keeps them in single precision.
            assert written[key] == pytest.approx(logged, rel=1e-6)


def event_scalars(folder):
    """Values by name in the events that TensorBoard would show."""
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    names = events.Tags()['scalars']
    return {name: [each.value for each in events.Scalars(name)] for name in names}


@pytest.mark.long
@pytest.mark.parametrize('family', ['slak', 'pelk'])
@pytest.mark.usefixtures('one_thread')
def test_released_sparse_weights_train_as_documented(
    family, narrow, shared, street, tmp_path, monkeypatch
):
    monkeypatch.setattr(Config, 'pretty_text', '')
    golden = torch.load(shared / 'golden' / 'slak51_cls_small.pt', weights_only=True)
    torch.save(golden['checkpoint'], tmp_path / 'released.pth')
    convert_checkpoint(
        tmp_path / 'released.pth',
        tmp_path / 'converted.pth',
        warm_start='pelk' if family == 'pelk' else None,
    )
    converted = read_checkpoint(tmp_path / 'converted.pth')
    start, backbone = converted['state_dict'], converted['meta']['backbone']
    path = ROOT / 'configs' / f'upernet_{family}_t_ade20k.py'
    cfg = narrow(with_data(load(path), path, shared, street), path.stem, tmp_path)
    channels = backbone['arch']['channels']
    cfg.model.backbone.arch = backbone['arch']
    cfg.model.decode_head.in_channels = channels
    cfg.model.auxiliary_head.in_channels = channels[2]
    cfg.merge_from_dict(
        {
            'model.backbone.init_cfg.type': 'Pretrained',
            'model.backbone.init_cfg.checkpoint': str(tmp_path / 'converted.pth'),
        }
    )
    runner = Runner.from_cfg(cfg)
    runner.train()
    kept = []
    for name, weight in runner.model.backbone.named_parameters():
        if weight.ndim in (2, 4) and start[name].count_nonzero() < 0.9 * weight.numel():
            assert torch.equal(weight != 0, start[name] != 0)
            kept.append(name)
    assert any('pointwise' in name for name in kept)


@pytest.mark.parametrize('name', ['upernet_pelk_t_ade20k', 'fcos_replknet_31b_coco'])
@pytest.mark.usefixtures('one_thread')
def test_test_time_augmentation(name, narrow, shared, street, tmp_path):
    path = ROOT / 'configs' / f'{name}.py'
    cfg = narrow(with_data(load(path), path, shared, street), path.stem, tmp_path)
    views = cfg.tta_pipeline[1].transforms
    assert len(views[0]) == (6 if cfg.default_scope == 'mmseg' else 3)
    views[0] = views[0][:2]
    # The enlarged views would be slid over in hundreds of narrow crops.
    cfg.model.test_cfg.mode = 'whole'
    cfg.test_dataloader.dataset.update(pipeline=cfg.tta_pipeline, indices=1)
    sample = DATASETS.build(cfg.test_dataloader.dataset)[0]
    assert [entry.flip for entry in sample['data_samples']] == [False, True] * 2
    model = MODELS.build(dict(**cfg.tta_model, module=cfg.model)).eval()
    with torch.no_grad():
        (result,) = model.test_step(pseudo_collate([sample]))
    if cfg.default_scope == 'mmseg':
        assert result.pred_sem_seg.shape == result.gt_sem_seg.shape
    else:
        assert 0 < len(result.pred_instances.bboxes) <= 100
