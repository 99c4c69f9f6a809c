import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip('mmseg')

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmseg.datasets import ADE20KDataset
from mmseg.evaluation import IoUMetric

from metric import OccurringIoUMetric
from report import IGNORED, commonest_class
from run import (
    DATA,
    EXAMPLES,
    SHOWN_TOGETHER,
    claim_folder,
    make_config,
    run_demo,
)
from scenes import LABELS, UNLABELLED, draw_scene, write_dataset

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs' / 'demo' / 'upernet_pelk_narrow_drawn_scenes.py'
CLASSES = ADE20KDataset.METAINFO['classes']
PALETTE = ADE20KDataset.METAINFO['palette']
COUNTS = dict(training=6, validation=7)


def test_labels_are_ade20k_numbers():
    assert len(LABELS) >= 8
    for name, number in LABELS.items():
        assert CLASSES[number - 1] == name


def test_dataset_has_ade20k_layout(tmp_path):
    root = tmp_path / DATA
    seen = []
    write_dataset(
        root, 0, COUNTS, (36, 48), progress=lambda done, total: seen.append(done)
    )
    assert seen == list(range(1, sum(COUNTS.values()) + 1))
    assert sorted(p.name for p in root.parent.iterdir()) == [root.name]
    for split, part in (('training', 'train'), ('validation', 'val')):
        names = [f'ADE_{part}_{i:08d}' for i in range(1, COUNTS[split] + 1)]
        for kind, suffix in (('images', '.jpg'), ('annotations', '.png')):
            files = sorted(p.name for p in (root / kind / split).iterdir())
            assert files == [f'{name}{suffix}' for name in names]
    labels = cv2.imread(str(root / 'annotations/training/ADE_train_00000001.png'), -1)
    assert np.array_equal(labels, draw_scene(0, 'training', 0, (36, 48))[1])
    kinds = (root / 'sceneCategories.txt').read_text().splitlines()
    assert kinds[0] == 'ADE_train_00000001 street'
    assert len(kinds) == sum(COUNTS.values())

    # Another test may have left mmdet's scope set.
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = ADE20KDataset(
            data_root=str(root),
            data_prefix=dict(
                img_path='images/validation', seg_map_path='annotations/validation'
            ),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
            ],
        )
    assert len(dataset) == COUNTS['validation']
    truth = dataset[0]['gt_seg_map']
    labels = draw_scene(0, 'validation', 0, (36, 48))[1]
    assert np.array_equal(truth, np.where(labels == UNLABELLED, 255, labels - 1))


def test_metric_scores_as_mmseg_does(caplog):
    truth = torch.randint(0, 5, (1, 20, 20))
    answer = torch.where(torch.rand(1, 20, 20) < 0.6, truth, 7)
    sample = dict(pred_sem_seg=dict(data=answer), gt_sem_seg=dict(data=truth))
    scores = []
    for kind in (IoUMetric, OccurringIoUMetric):
        metric = kind()
        metric.dataset_meta = ADE20KDataset.METAINFO
        metric.process({}, [sample])
        with caplog.at_level('INFO'):
            logger = MMLogger.get_current_instance()
            logger.addHandler(caplog.handler)
            scores.append(metric.evaluate(1))
            logger.removeHandler(caplog.handler)
        assert metric.dataset_meta is ADE20KDataset.METAINFO
    assert scores[0] == scores[1]
    full, short = (
        record.getMessage() for record in caplog.records if '|' in record.getMessage()
    )
    assert 'escalator' in full
    assert 'escalator' not in short
    for name in (*CLASSES[:5], CLASSES[7]):
        assert f' {name.strip()} ' in short


def test_commonest_class_ignores_unlabelled(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.uint8([[0, 0, 0, 0], [3, 3, 3, 7]]))
    cv2.imwrite(str(tmp_path / 'b.png'), np.uint8([[7, 7, 7, 0]]))
    assert commonest_class(tmp_path.glob('*.png')) == 6


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / 'thesis.tex').write_text('precious')
    with pytest.raises(FileExistsError, match='demo.json.*--out'):
        claim_folder(tmp_path, {})
    with pytest.raises(FileExistsError, match='is a file.*--out'):
        claim_folder(tmp_path / 'thesis.tex', {})
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_folder_is_cleared_of_earlier_results(tmp_path):
    claim_folder(tmp_path / 'demo', dict(seed=1))
    folder = tmp_path / 'demo'
    for name in ('scores.md', 'curves.png', 'example_1.png', 'notes.txt'):
        (folder / name).write_text('old')
    (folder / 'training').mkdir()
    claim_folder(folder, dict(seed=2))
    assert sorted(p.name for p in folder.iterdir()) == ['demo.json', 'notes.txt']
    assert json.loads((folder / 'demo.json').read_text()) == dict(seed=2)


def test_config_keeps_the_real_kernels(tmp_path):
    cfg = make_config(CONFIG, tmp_path, 0, None)
    arch = cfg.model.backbone.arch
    assert arch.kernel_sizes == [51, 49, 47, 13]
    assert arch.central_radius == 2
    assert cfg.model.decode_head.in_channels == arch.channels
    assert cfg.model.decode_head.num_classes == len(CLASSES)
    assert cfg.param_scheduler[1].end == cfg.train_cfg.max_iters


@pytest.mark.parametrize(
    'path', sorted(CONFIG.parent.glob('*.py')), ids=lambda path: path.stem
)
def test_configs_work_without_the_demo(path):
    # They travel in the wheel, which has no demo.
    cfg = Config.fromfile(path)
    assert cfg.custom_imports.imports == ['pelk_mm']
    metrics = pytest.importorskip(f'{cfg.default_scope}.evaluation')
    assert hasattr(metrics, cfg.val_evaluator.type)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--seed', 'x'], "'x' is not a whole number from 0"),
        (['--seed', '-1'], "'-1' is not a whole number from 0"),
        (['--iters', '3'], "'3' is not a whole number from 10"),
    ],
)
def test_command_refuses_bad_arguments(arguments, message, tmp_path):
    result = subprocess.run(
        [sys.executable, ROOT / 'demo' / 'demo.py', *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.mark.parametrize('amp', [False, True])
def test_mixed_precision_is_what_the_tools_have(tmp_path, amp):
    cfg = make_config(CONFIG, tmp_path, 0, None, amp)
    assert cfg.optim_wrapper.type == ('AmpOptimWrapper' if amp else 'OptimWrapper')
    assert cfg.optim_wrapper.get('loss_scale') == ('dynamic' if amp else None)


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """Folder and score table of a demonstration of four iterations."""
    folder = tmp_path_factory.mktemp('demo') / 'results'
    return folder, run_demo(CONFIG, folder, seed=1, iters=4, counts=COUNTS)


@pytest.fixture(scope='module')
def truth(demo):
    """Validation annotations, unlabelled pixels marked as mmseg marks them."""
    paths = sorted((demo[0] / DATA / 'annotations/validation').iterdir())
    labels = np.stack([cv2.imread(str(path), -1) for path in paths]).astype(int)
    return np.where(labels == UNLABELLED, IGNORED, labels - 1)


@pytest.mark.long
def test_scores_are_what_the_training_logged(demo):
    folder, table = demo
    scores = json.loads((folder / 'scores.json').read_text())
    (scalars,) = folder.glob('training/*/vis_data/scalars.json')
    last = json.loads(scalars.read_text().splitlines()[-1])
    assert last['step'] == 4
    for name in ('aAcc', 'mIoU', 'mAcc'):
        assert scores['model'][name] == pytest.approx(last[name], abs=0.006)
        assert f'{scores["model"][name]:.2f}' in table
    assert table in (folder / 'scores.md').read_text()


@pytest.mark.long
def test_baseline_is_the_commonest_class_everywhere(demo, truth):
    folder, table = demo
    baseline = json.loads((folder / 'scores.json').read_text())['commonest_class']
    labelled = truth[truth != IGNORED]
    occurring = [CLASSES[i] for i in np.unique(labelled)]
    share = 100 * (labelled == CLASSES.index(baseline['name'])).mean()
    assert baseline['aAcc'] == pytest.approx(share, abs=1e-3)
    assert baseline['mIoU'] == pytest.approx(share / len(occurring), abs=1e-3)
    assert list(baseline['IoU']) == occurring
    for name in occurring:
        assert f'| IoU {name} ' in table
    assert table.count('\n| IoU') == len(occurring)
    assert f'always "{baseline["name"]}"' in table


@pytest.mark.long
def test_examples_show_the_truth(demo, truth):
    folder, _ = demo
    paths = sorted(folder.glob('example_*.png'))
    assert len(paths) == EXAMPLES
    pictures = [cv2.imread(str(path))[..., ::-1] for path in paths]
    together = cv2.imread(str(folder / 'examples.png'))[..., ::-1]
    rows = np.array_split(together, SHOWN_TOGETHER)
    for picture, labels in zip(
        [*pictures, *rows], [*truth[:EXAMPLES], *truth[:SHOWN_TOGETHER]], strict=True
    ):
        height, width = picture.shape[:2]
        assert width > 2 * height
        middle = picture[:, width // 3 : 2 * width // 3].reshape(-1, 3)
        for index in np.unique(labels[labels != IGNORED]):
            painted = (middle == PALETTE[index]).all(1).sum()
            share = (labels == index).mean()
            if share > 0.02:
                assert painted / len(middle) > 0.4 * share
        assert picture[:, : width // 3].std() > 15


@pytest.mark.long
def test_curves_are_drawn(demo):
    picture = cv2.imread(str(demo[0] / 'curves.png'))[..., ::-1].astype(int)
    assert picture.shape[1] > 2 * picture.shape[0]
    blue = np.abs(picture - (0x1F, 0x5F, 0xA8)).sum(-1) < 30
    orange = np.abs(picture - (0xC2, 0x57, 0x1A)).sum(-1) < 30
    half = picture.shape[1] // 2
    assert blue[:, :half].sum() > 100
    assert blue[:, half:].sum() > 100
    assert orange[:, half:].sum() > 100


@pytest.mark.long
def test_checkpoint_and_log_are_kept(demo):
    training = demo[0] / 'training'
    assert (training / 'iter_4.pth').is_file()
    assert list(training.glob('*/*.log'))
    assert json.loads((demo[0] / 'demo.json').read_text()) == dict(
        seed=1, iterations=4, scenes=COUNTS, amp=False
    )
