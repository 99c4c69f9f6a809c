"""Ten kills in a row of a segmenter and of a detector, through `pelk-mm train`.

Every training is the published config, narrowed, in a process of its own that is killed
from outside: after some iterations and a part of one, or as soon as a checkpoint is
being written.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from mmengine.config import Config

from pelk_mm.checkpoints import load_weights_only
from pelk_mm.engine.launch import hand_over
from pelk_mm.engine.resume import find_fault
from scenes import write_dataset

ROOT = Path(__file__).resolve().parents[2]
KILLS = 10
#: Seconds in which a process has to come as far as the next thing to wait for.
PATIENCE = 600


def load(name):
    return Config.fromfile(ROOT / 'configs' / f'{name}.py')


def segmenter(folder, narrow, draw_objects):
    write_dataset(folder / 'data', 0, {'training': 6, 'validation': 1})
    cfg = narrow(load('upernet_pelk_t_ade20k'), 'killed', folder)
    cfg.train_cfg.update(max_iters=30, val_interval=1000)
    cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=2)
    return cfg


def detector(folder, narrow, draw_objects):
    coco = draw_objects(folder / 'data' / 'train2017')
    cfg = narrow(load('cascade_mask_rcnn_pelk_t_coco'), 'killed', folder)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.update(
            ann_file='objects.json', data_prefix=dict(img='train2017/'), indices=None
        )
        loader.dataset.metainfo = dict(classes=('balloon', 'kite', 'drone'))
    (folder / 'data' / 'objects.json').write_text(json.dumps(coco))
    cfg.val_evaluator.ann_file = str(folder / 'data' / 'objects.json')
    for head in cfg.model.roi_head.bbox_head:
        head.num_classes = 3
    cfg.model.roi_head.mask_head.num_classes = 3
    cfg.train_cfg.update(max_epochs=16, val_interval=1000)
    return cfg


@pytest.fixture(params=[False, True], ids=['dense', 'sparse'])
def sparse(request):
    return request.param


@pytest.fixture(params=[segmenter, detector], ids=['segmenter', 'detector'])
def training(request, sparse, narrow, draw_objects, tmp_path):
    """Folder with the data and ``train.py``, a config with EMA and a seed."""
    cfg = request.param(tmp_path, narrow, draw_objects)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(tmp_path / 'data')
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.05)]
    cfg.default_hooks.sparsity.update(update_interval=3)
    if not sparse:
        cfg.default_hooks.sparsity.mode = 'off'
    for name in ('work_dir', 'experiment_name'):
        cfg.pop(name)
    cfg.visualizer.pop('name')
    cfg.dump(tmp_path / 'config.py')
    return tmp_path


def start(folder, out, *flags):
    """Begins `pelk-mm train` in a forked process; returns its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.chdir(folder)
        sys.argv = ['train', 'config.py', '--work-dir', out, *flags]
        hand_over('train')
        status = 0
    finally:
        os._exit(status)


def iterations(folder):
    """How many iterations all runs in a folder have logged."""
    return sum(
        path.read_text().count('"loss"')
        for path in folder.glob('*/vis_data/scalars.json')
    )


def wait_for(child, condition, pause):
    """Waits until a condition is true; returns how a process ended before it, or None.

    Raises:
        TimeoutError: If neither happens.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if condition():
            return None
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(pause)
    raise TimeoutError(f'no end of waiting after {PATIENCE} s')


def writes(out):
    """Whether a checkpoint is being written."""
    return any(name.startswith(('.iter_', '.epoch_')) for name in os.listdir(out))


@pytest.mark.slow
def test_ten_kills_in_a_row(training, kills):
    rng = random.Random(training.name)
    whole, out = training / 'whole', training / 'out'
    assert kills.read_status(os.waitpid(start(training, 'whole'), 0)[1]) == 0
    records = []
    for number in range(KILLS):
        before = iterations(out)
        child = start(training, 'out', *['--resume'] * (number > 0))
        # Of every three, one inside the writing of a checkpoint and two anywhere.
        if number % 3 == 1:
            ended = wait_for(child, lambda: out.is_dir() and writes(out), 0.001)
        else:
            goal = before + rng.randint(0, 4)
            ended = wait_for(child, lambda: iterations(out) >= goal, 0.01)  # noqa: B023
            time.sleep(rng.uniform(0, 0.3))
        assert ended is None, f'the run ended by itself after {number} kills'
        os.kill(child, signal.SIGKILL)
        assert kills.read_status(os.waitpid(child, 0)[1]) == signal.SIGKILL
        inside = kills.temporary_files(out)
        faults = {path.name: find_fault(path) for path in out.glob('*.pth')}
        assert set(faults.values()) <= {None}
        last = out / 'last_checkpoint'
        if last.exists():
            assert find_fault(training / last.read_text()) is None
        records.append((iterations(out) - before, bool(inside), len(faults)))
    print('iterations, inside a write, checkpoints:', records)
    assert any(inside for _, inside, _ in records)
    child = start(training, 'out', '--resume')
    assert kills.read_status(os.waitpid(child, 0)[1]) == 0
    name = max(whole.glob('*.pth'), key=lambda path: path.stat().st_mtime_ns).name
    expected, last = (load_weights_only(folder / name) for folder in (whole, out))
    assert last['meta']['iter'] == expected['meta']['iter']
    assert ('sparsity' in last) == ('sparsity' in expected)
    for entry in ('state_dict', 'ema_state_dict'):
        assert kills.differing(last[entry], expected[entry]) == []
    assert kills.temporary_files(out) == []
