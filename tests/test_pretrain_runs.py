"""Pre-training by mmpretrain's tools, narrow, on a drawn ImageNet of three classes."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from pelk_mm.analysis.complexity import (
    complexity,
    paper_sparsity,
    total,
    uniform_density,
)
from pelk_mm.analysis.from_config import build_on_meta, image_shape
from pelk_mm.analysis.paper_table import IMAGENET, measure
from pelk_mm.backbones import PeLK, RepLKNet, SLaK
from pelk_mm.checkpoints.files import read_checkpoint

mmpretrain = pytest.importorskip(
    'mmpretrain', reason='needs mmpretrain and the torchvision that fits torch'
)

pytestmark = pytest.mark.usefixtures('one_thread')

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'pretrain'
CLASSES = ('n01', 'n02', 'n03')

#: The models of the papers' table by our config's name.
ROWS = {
    'pelk_t_300e_in1k': 'PeLK-T',
    'pelk_s_300e_in1k': 'PeLK-S',
    'pelk_b_300e_in1k': 'PeLK-B',
    'pelk_b_384_30e_in1k': 'PeLK-B',
    'pelk_b_101_384_30e_in1k': 'PeLK-B-101',
    'slak_t_300e_in1k': 'SLaK-T',
    'slak_s_300e_in1k': 'SLaK-S',
    'slak_b_300e_in1k': 'SLaK-B',
    'replknet_31b_300e_in1k': 'RepLKNet-31B',
}
#: Those of which the others differ in numbers alone.
STRUCTURES = ('pelk_t_300e_in1k', 'slak_t_300e_in1k', 'replknet_31b_300e_in1k')


@pytest.fixture(scope='session')
def imagenet(tmp_path_factory):
    """Images of noise, one colour channel per class bright, in ImageNet's folders."""
    root = tmp_path_factory.mktemp('imagenet')
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 2)):
        for number, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 160, (40, 52, 3)).astype(np.uint8)
                image[..., number] = 220
                cv2.imwrite(str(folder / f'{name}_{i}.JPEG'), image)
    return root


@pytest.fixture
def options(imagenet):
    """Makes the values of ``--cfg-options`` that make a config narrow and short."""

    def make(name, **more):
        values = {
            'model.backbone.arch._delete_': True,
            'model.backbone.arch.channels': '[8,12,16,24]',
            'model.backbone.arch.depths': '[1,1,1,1]',
            'model.backbone.arch.kernel_sizes': '[51,49,47,13]',
            'model.head.in_channels': 24,
            'model.head.num_classes': 3,
            'model.data_preprocessor.num_classes': 3,
            'train_dataloader.batch_size': 6,
            'train_cfg.max_epochs': 2,
            'optim_wrapper.accumulative_counts': 1,
            'default_hooks.logger.interval': 1,
            'randomness.seed': 0,
            'log_level': 'ERROR',
        }
        if not name.startswith('replknet'):
            values['model.neck.channels'] = 24
            values['default_hooks.sparsity.update_interval'] = 2
        if name.startswith('pelk'):
            values['model.backbone.arch.central_radius'] = 2
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            values[f'{loader}.num_workers'] = 0
            values[f'{loader}.persistent_workers'] = False
            values[f'{loader}.dataset.data_root'] = imagenet
            values[f'{loader}.dataset.metainfo.classes'] = ','.join(CLASSES)
        for evaluator in ('val_evaluator', 'test_evaluator'):
            values[f'{evaluator}.topk'] = '(1,)'
        values |= more
        return ['--cfg-options', *(f'{key}={value}' for key, value in values.items())]

    return make


@pytest.fixture
def train(run_tool, options, monkeypatch):
    """Trains a narrowed config of ours with `pelk-mm train`."""
    monkeypatch.setattr(Config, 'pretty_text', '')

    def run(name, work_dir, *flags, **more):
        # mmengine keeps visualizers by name, for longer than a test.
        unique = f'{work_dir.parent.name}_{work_dir.name}'
        more = {'visualizer.name': unique, 'experiment_name': unique} | more
        arguments = ['--work-dir', work_dir, *flags, *options(name, **more)]
        finished = run_tool('tools/train.py', CONFIGS / f'{name}.py', *arguments)
        assert finished.returncode == 0, finished.stderr
        return finished

    return run


def scalars(work_dir):
    """Records that the last run in a folder has logged."""
    (*_, path) = sorted(work_dir.glob('*/vis_data/scalars.json'))
    return [Config.fromstring(x, '.json') for x in path.read_text().splitlines()]


@pytest.mark.parametrize('kind', [PeLK, SLaK, RepLKNet])
def test_our_classes_are_meant(kind):
    """By the scope pelk_mm; mmpretrain's RepLKNet is another class."""
    init_default_scope('mmpretrain')
    name = kind.__name__
    with MODELS.switch_scope_and_registry('mmpretrain') as registry:
        assert registry.get(f'pelk_mm.{name}') is kind
        plain = registry.get(name)
    assert (plain is kind) == (name != 'RepLKNet')


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=() if '_t_' in name else pytest.mark.slow)
        for name in ROWS
    ],
)
def test_parameters_are_those_of_the_table(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    model = build_on_meta(cfg)
    size = total(
        complexity(model, image_shape(cfg), uniform_density(paper_sparsity(model)))
    )
    row = next(
        row
        for row in IMAGENET
        if (row.name, row.shape) == (ROWS[name], image_shape(cfg))
    )
    figures = measure(row, ROOT / 'configs')
    assert size.nonzeros / 1e6 == pytest.approx(figures.parameters)
    assert size.paper / 1e9 == pytest.approx(figures.multiply_adds, rel=1e-5)


@pytest.mark.parametrize('name', STRUCTURES)
def test_training_validates_saves_and_resumes(name, train, tmp_path):
    train(name, tmp_path / 'whole')
    records = scalars(tmp_path / 'whole')
    losses = [record.loss for record in records if 'loss' in record]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    assert sum('accuracy/top1' in record for record in records) == 2

    # Resumed after the first epoch, it is the uninterrupted one.
    train(name, tmp_path / 'parts', '--resume', tmp_path / 'whole' / 'epoch_1.pth')
    whole, parts = (
        read_checkpoint(tmp_path / folder / 'epoch_2.pth')
        for folder in ('whole', 'parts')
    )
    for entry in ('state_dict', 'ema_state_dict'):
        assert whole[entry].keys() == parts[entry].keys()
        for key, value in whole[entry].items():
            assert torch.equal(value, parts[entry][key]), key


def test_masks_and_average(train, tmp_path):
    """Masks move; both the weights and their average have the zeros."""
    train('pelk_t_300e_in1k', tmp_path / 'run')
    saved = read_checkpoint(tmp_path / 'run' / 'epoch_2.pth')
    assert saved['sparsity']['mode'] == 'dynamic'
    density = {record.get('density') for record in scalars(tmp_path / 'run')} - {None}
    assert all(each == pytest.approx(0.6, abs=1e-3) for each in density)
    assert any(record.get('regrown') for record in scalars(tmp_path / 'run'))
    averaged, trained = saved['state_dict'], saved['ema_state_dict']
    sparse = 0
    for name, weight in averaged.items():
        other = trained[f'module.{name}']
        if name.startswith('backbone.') and weight.ndim in (2, 4):
            zeros = other == 0
            sparse += zeros.sum().item()
            assert not weight[zeros].count_nonzero()
    assert sparse > 0
    changed = [
        n for n, w in averaged.items() if not torch.equal(w, trained[f'module.{n}'])
    ]
    assert 'head.fc.weight' in changed


def test_accumulation_and_mixed_precision(train, tmp_path):
    """`--amp` is bfloat16 here; a step is made of two iterations, and one average."""
    more = {'optim_wrapper.accumulative_counts': 2, 'default_hooks.ema.interval': 2}
    finished = train('pelk_t_300e_in1k', tmp_path / 'run', '--amp', **more)
    assert finished.returncode == 0
    losses = [record.loss for record in scalars(tmp_path / 'run') if 'loss' in record]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)


def test_scaled_rate(train, tmp_path):
    """12 images an iteration instead of 8 x 128, at the accumulation of the config."""
    train('pelk_t_300e_in1k', tmp_path / 'run', '--auto-scale-lr')
    (*_, last) = [record for record in scalars(tmp_path / 'run') if 'lr' in record]
    train('pelk_t_300e_in1k', tmp_path / 'as_it_is')
    (*_, plain) = [
        record for record in scalars(tmp_path / 'as_it_is') if 'lr' in record
    ]
    assert last.lr == pytest.approx(plain.lr * 6 / 1024)


def test_fine_tuning_and_testing(train, run_tool, options, tmp_path):
    """The -101 at 384 starts from the classifier at 224, whose zeros it keeps."""
    more = {'model.backbone.arch.kernel_sizes': '[101,69,67,13]'}
    more['model.backbone.arch.central_radius'] = 3
    train('pelk_t_101_300e_in1k', tmp_path / 'at_224', **more)
    start = tmp_path / 'at_224' / 'epoch_2.pth'
    name = 'pelk_t_101_384_30e_in1k'
    train(name, tmp_path / 'at_384', **more, load_from=start)
    before = read_checkpoint(start)['state_dict']
    after = read_checkpoint(tmp_path / 'at_384' / 'epoch_2.pth')
    assert after['sparsity']['mode'] == 'fixed'
    for key, weight in after['state_dict'].items():
        if key.startswith('backbone.') and weight.ndim in (2, 4):
            assert not weight[before[key] == 0].count_nonzero()
    finished = run_tool(
        'tools/test.py',
        CONFIGS / f'{name}.py',
        tmp_path / 'at_384' / 'epoch_2.pth',
        '--work-dir',
        tmp_path / 'tested',
        *options(name, **more, **{'visualizer.name': 'tested', 'log_level': 'INFO'}),
    )
    assert finished.returncode == 0, finished.stderr
    assert 'accuracy/top1' in finished.stdout + finished.stderr


def test_augmentations_change_images(imagenet):
    """RandAugment, erasing, mixup and cutmix, each seen to do something."""
    from mmengine.registry import DATASETS

    init_default_scope('mmpretrain')
    cfg = Config.fromfile(CONFIGS / 'pelk_t_300e_in1k.py')
    cfg.train_dataloader.dataset.update(
        data_root=str(imagenet), metainfo=dict(classes=CLASSES)
    )
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    np.random.seed(0)
    samples = [dataset[0]['inputs'] for _ in range(6)]
    assert all(tuple(sample.shape) == (3, 224, 224) for sample in samples)
    assert len({tuple(sample.flatten()[:99].tolist()) for sample in samples}) == 6

    cfg.model.data_preprocessor.batch_augments = cfg.model.train_cfg
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    data = [dataset[i] for i in (0, 5, 9)]
    mixed = preprocessor(
        dict(
            inputs=[sample['inputs'] for sample in data],
            data_samples=[sample['data_samples'] for sample in data],
        ),
        training=True,
    )
    scores = torch.stack([sample.gt_score for sample in mixed['data_samples']])
    assert scores.shape == (3, 1000)
    torch.testing.assert_close(scores.sum(1), torch.ones(3))
    assert ((scores > 0) & (scores < 1)).any()
