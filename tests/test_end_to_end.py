"""The published config, narrowed, through the command lines as users run them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.device import get_device

from pelk_mm.checkpoints import load_weights_only
from pelk_mm.engine.launch import find_tool
from scenes import write_dataset

ROOT = Path(__file__).resolve().parents[1]

NARROW = """
_base_ = {base!r}
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        arch=dict(_delete_=True,
            channels=[8, 16, 24, 32], depths=[1, 1, 1, 1],
            kernel_sizes=[51, 49, 47, 13], central_radius=2,
        ),
    ),
    decode_head=dict(in_channels=[8, 16, 24, 32], channels=16),
    auxiliary_head=dict(in_channels=24, channels=16),
    test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(43, 43)),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomCrop', crop_size=(64, 64)),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 64), keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(data_root={data!r}, pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(data_root={data!r}, pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
randomness = dict(seed=0)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder away from the checkout, with data and a config inheriting ours."""
    folder = tmp_path_factory.mktemp('elsewhere')
    write_dataset(folder / 'scenes', 0, {'training': 4, 'validation': 1})
    base = str(ROOT / 'configs' / 'upernet_pelk_t_ade20k.py')
    data = str(folder / 'scenes')
    (folder / 'narrow.py').write_text(NARROW.format(base=base, data=data))
    return folder


def run(folder, tool, *arguments):
    result = subprocess.run(
        [sys.executable, tool, 'narrow.py', *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def losses(work_dir):
    """Training losses by iteration, of the latest run."""
    path = max(Path(work_dir).glob('*/vis_data/scalars.json'))
    records = map(json.loads, path.read_text().splitlines())
    return {r['step']: r['loss'] for r in records if 'loss' in r}


@pytest.mark.long
def test_train_resume_and_test(folder):
    train, test = (ROOT / 'tools' / name for name in ('train.py', 'test.py'))
    output = run(folder, train, '--work-dir', 'out')
    assert output.count('all SyncBatchNorm (SyncBN) layers in the model will be') == 1
    first = losses(folder / 'out')
    assert list(first) == [1, 2]
    assert all(0 < loss < 100 for loss in first.values())
    checkpoint = load_weights_only(folder / 'out' / 'iter_2.pth')
    assert checkpoint['meta']['iter'] == 2

    more = ['--cfg-options', 'train_cfg.max_iters=4', 'train_cfg.val_interval=4']
    run(folder, train, '--work-dir', 'out', '--resume', *more)
    assert list(losses(folder / 'out')) == [3, 4]
    before, after = (
        load_weights_only(folder / 'out' / f'iter_{i}.pth')['state_dict']
        for i in (2, 4)
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)

    output = run(folder, test, 'out/iter_4.pth', '--work-dir', 'tested')
    (score,) = re.findall(r'mIoU: \d+\.\d+', output)
    prepared = ['--prepare', 'float32', '--work-dir', 'prepared']
    assert score in run(folder, test, 'out/iter_4.pth', *prepared)


@pytest.mark.long
def test_mmseg_own_train_tool(folder):
    run(folder, find_tool('mmseg', 'train'), '--work-dir', 'theirs')
    assert list(losses(folder / 'theirs')) == [1, 2]
    assert (folder / 'theirs' / 'iter_2.pth').is_file()


@pytest.mark.slow
@pytest.mark.parametrize('own', [True, False], ids=['ours', 'mmseg'])
def test_mixed_precision_without_a_gpu(folder, own):
    """mmseg's tool reaches it by the config's ``custom_imports``."""
    if get_device() != 'cpu':
        pytest.skip('mmengine finds a GPU')
    tool = ROOT / 'tools' / 'train.py' if own else find_tool('mmseg', 'train')
    out = f'amp_{own}'
    output = run(folder, tool, '--work-dir', out, '--amp')
    assert list(losses(folder / out)) == [1, 2]
    assert "type='AmpOptimWrapper'" in output
