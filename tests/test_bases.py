"""Bases combine: any schedule with any runtime, model and data set of one framework."""

import importlib.util
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS, LOG_PROCESSORS, init_default_scope

BASES = Path(__file__).resolve().parents[1] / 'configs' / '_base_'
SCHEDULES = {'adamw_160k', 'adamw_80k', 'adamw_2x', 'adamw_3x'}
#: Models and data sets by framework.
MODELS = {'mmseg': {'upernet'}, 'mmdet': {'cascade_mask_rcnn', 'fcos'}}
DATASETS = {
    'mmseg': {'ade20k', 'cityscapes'},
    'mmdet': {'coco_instance', 'coco_detection'},
}
#: Those of classifiers, which combine with each other; tests of configs/pretrain do it.
PRETRAIN = {
    'models': {'classifier'},
    'datasets': {'imagenet', 'imagenet_384'},
    'schedules': {'adamw_300e', 'adamw_30e_finetune'},
}
#: Of a model and a data set that do not combine, one has masks and the other none.
WITH_MASKS = {'cascade_mask_rcnn', 'coco_instance'}

COMBINATIONS = [
    (framework, model, data, schedule)
    for framework in MODELS
    for model, data, schedule in product(
        sorted(MODELS[framework]), sorted(DATASETS[framework]), sorted(SCHEDULES)
    )
    if (model in WITH_MASKS) == (data in WITH_MASKS)
]


def names(folder):
    return {path.stem for path in (BASES / folder).glob('*.py')}


def combine(tmp_path, framework, model, data, schedule, text=''):
    path = tmp_path / 'combined.py'
    bases = [
        f'models/{model}.py',
        f'datasets/{data}.py',
        f'schedules/{schedule}.py',
        f'{framework}_runtime.py',
        'sparsity.py',
    ]
    path.write_text(
        f'_base_ = {[str(BASES / base) for base in bases]}\n'
        'default_hooks = dict(**_base_.framework_hooks, sparsity=_base_.sparsity)\n'
        + text
    )
    return Config.fromfile(path)


def test_every_base_is_combined():
    assert names('schedules') == SCHEDULES | PRETRAIN['schedules']
    assert names('models') == set.union(*MODELS.values(), PRETRAIN['models'])
    assert names('datasets') == set.union(*DATASETS.values(), PRETRAIN['datasets'])
    runtimes = {f'{f}_runtime' for f in (*MODELS, 'mmpretrain', 'default')}
    assert names('.') == {*runtimes, 'sparsity'}


@pytest.mark.parametrize(
    ('framework', 'model', 'data', 'schedule'),
    COMBINATIONS,
    ids=['-'.join(combination[1:]) for combination in COMBINATIONS],
)
def test_combination(framework, model, data, schedule, tmp_path):
    cfg = combine(tmp_path, framework, model, data, schedule)
    assert cfg.default_scope == framework
    # What counts, saves and logs goes by the loop's own unit.
    by_epoch = cfg.train_cfg.type == 'EpochBasedTrainLoop'
    assert by_epoch == ('k' not in schedule)
    init_default_scope(framework)
    hooks = {
        name: HOOKS.build(hook)
        for name, hook in cfg.default_hooks.items()
        if name != 'visualization'  # wants a run's visualizer
    }
    assert hooks['checkpoint'].by_epoch == by_epoch
    assert hooks['checkpoint'].interval == cfg.train_cfg.val_interval
    assert hooks['logger'].log_metric_by_epoch == by_epoch
    log_processor = LOG_PROCESSORS.build(
        {'type': 'LogProcessor', **cfg.get('log_processor', {})}
    )
    assert log_processor.by_epoch == by_epoch
    # Those of the framework are there, and nothing of the schedule was lost to them.
    checks = dict(mmseg='SegDataCheckHook', mmdet='NumClassCheckHook')
    assert checks[framework] in {type(hook).__name__ for hook in hooks.values()}
    drawing = dict(mmseg='SegVisualizationHook', mmdet='DetVisualizationHook')
    assert cfg.default_hooks.visualization.type == drawing[framework]
    assert {'timer', 'param_scheduler', 'sampler_seed', 'sparsity'} <= hooks.keys()
    sampler = cfg.train_dataloader.sampler.type
    endless = sampler == 'InfiniteSampler'
    assert endless == (framework == 'mmseg')


def test_what_does_not_combine_is_said_in_the_files():
    """Masks, and epochs of an endless sampler; the latter is refused when it starts."""
    assert 'InfiniteSampler' in (BASES / 'schedules/adamw_3x.py').read_text()
    assert 'coco_detection.py' in (BASES / 'datasets/coco_instance.py').read_text()
    assert 'coco_instance.py' in (BASES / 'models/cascade_mask_rcnn.py').read_text()


def test_epochs_of_a_segmenter(tmp_path):
    """As the comment in the schedule says."""
    text = (BASES / 'schedules/adamw_3x.py').read_text()
    (line,) = (
        line.removeprefix('#').strip()
        for line in text.splitlines()
        if line.startswith('#     ')
    )
    cfg = combine(tmp_path, 'mmseg', 'upernet', 'ade20k', 'adamw_3x', line)
    assert cfg.train_dataloader.sampler.type == 'DefaultSampler'
    assert cfg.train_dataloader.sampler.shuffle


@pytest.mark.parametrize('framework', [*sorted(MODELS), 'mmpretrain'])
@pytest.mark.parametrize('installed', [True, False])
def test_tensorboard_where_it_is_installed(framework, installed, tmp_path, monkeypatch):
    """Without it a training would end in an ImportError of mmengine's backend."""
    spec = importlib.util.find_spec

    def find(name, *args):
        if name != 'tensorboard':
            return spec(name, *args)
        # What a folder of this name in the working directory makes of it.
        folder = SimpleNamespace(origin=None)
        return (
            SimpleNamespace(origin='tensorboard/__init__.py') if installed else folder
        )

    monkeypatch.setattr(importlib.util, 'find_spec', find)
    cfg = Config.fromfile(BASES / f'{framework}_runtime.py')
    kinds = [backend.type for backend in cfg.visualizer.vis_backends]
    assert kinds == ['LocalVisBackend'] + ['TensorboardVisBackend'] * installed
    cfg.dump(tmp_path / 'dumped.py')
    again = Config.fromfile(tmp_path / 'dumped.py')
    assert again.visualizer == cfg.visualizer
