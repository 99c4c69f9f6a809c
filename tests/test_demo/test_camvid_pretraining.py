"""Runs of demo/camvid.py that start from a pre-training."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('mmseg')

from mmengine.hooks import EMAHook

from camvid_runs import Run, RunError, _pretrain, finish
from pelk_mm.checkpoints.files import read_checkpoint

EXAMPLES = Path(__file__).resolve().parents[2] / 'configs' / 'examples'
ITERS = 3

#: A small pre-training and the segmenter that starts from it.
PRESENCE = 'presence_pelk_narrow_camvid'
PRETRAINED = 'upernet_pelk_narrow_camvid_pretrained'
SMALL_PRESENCE = f"""
_base_ = '{EXAMPLES}/{PRESENCE}.py'
channels = [8, 12, 16, 24]
model = dict(
    backbone=dict(arch=dict(channels=channels, depths=[1, 1, 1, 1])),
    neck=dict(channels=24),
    head=dict(in_channels=24),
)
train_dataloader = dict(batch_size=2)
"""


@pytest.fixture
def pretrained(tmp_path, streets, small_example):
    """A run of a small config that starts from a small pre-training."""
    (tmp_path / f'{PRESENCE}.py').write_text(SMALL_PRESENCE)
    config = small_example(PRETRAINED, tmp_path)
    folder = tmp_path / 'runs' / 'seed_1'
    return Run(config, 1, folder, streets, ITERS, dict(log_level='ERROR'))


def test_pretraining_is_run_once_with_the_seed_of_the_run(pretrained, monkeypatch):
    trained = []

    def train(run, cfg):
        trained.append((run, cfg))
        (run.folder / f'iter_{ITERS}.pth').write_bytes(b'')

    monkeypatch.setattr('camvid_runs._train', train)
    for _ in range(2):  # the second finds the first one's checkpoint
        cfg = pretrained.load()
        pretrained.folder.mkdir(parents=True, exist_ok=True)
        _pretrain(pretrained, cfg)
        assert cfg.model.backbone.init_cfg.to_dict() == dict(
            type='Pretrained',
            checkpoint=str(pretrained.folder / f'pretraining/iter_{ITERS}.pth'),
            prefix='backbone.',
        )
    ((run, settings),) = trained
    assert (run.name, run.seed, run.options) == (PRESENCE, 1, {})
    assert settings.randomness.seed == 1
    assert settings.train_dataloader.dataset.data_root == str(pretrained.data)


@pytest.mark.long
@pytest.mark.usefixtures('one_thread', 'patched')
def test_segmenter_starts_from_its_pretraining(pretrained, monkeypatch):
    pytest.importorskip('mmpretrain', reason='needs mmpretrain and its torchvision')
    started = []
    before_train = EMAHook.before_train

    def note(hook, runner):
        before_train(hook, runner)
        started.append(
            {n: p.detach().clone() for n, p in runner.model.named_parameters()}
        )

    monkeypatch.setattr(EMAHook, 'before_train', note)
    result = finish(pretrained)
    assert result.iterations == ITERS
    _, segmenter = started
    saved = read_checkpoint(pretrained.folder / f'pretraining/iter_{ITERS}.pth')
    weights = saved['state_dict']
    names = [n for n in segmenter if n.startswith('backbone.') and n in weights]
    assert len(names) > 20
    assert all(torch.equal(segmenter[name], weights[name]) for name in names)


def test_config_that_is_no_segmenter_is_refused(streets, tmp_path):
    run = Run(EXAMPLES / f'{PRESENCE}.py', 0, tmp_path / 'run', streets, ITERS, {})
    with pytest.raises(RunError, match=f'{PRESENCE}.py is not the config of a segm'):
        finish(run)
    assert not run.folder.exists()
