import os
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from pelk_mm.checkpoints import load_weights_only
from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.engine import SafeCheckpointHook


class Model(BaseModel):
    """One weight."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        scores = self.layer(torch.stack(inputs))
        return dict(loss=scores.square().mean()) if mode == 'loss' else [scores]


class Score(BaseMetric):
    """Gives the scores in their order, one per evaluation."""

    scores: ClassVar = []

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        score = Score.scores.pop(0)
        return dict(mIoU=score, loss=-score)


DATA = [dict(inputs=torch.ones(1))] * 4
count = iter(range(1000))


def train(folder, iters=6, scores=None, hook='SafeCheckpointHook', **kwargs):
    """Trains with a checkpoint in every second iteration, and evaluates as often."""
    log_level = kwargs.pop('log_level', 'ERROR')
    resume = dict(resume=True) if kwargs.pop('resume', False) else {}
    if 'load_from' in kwargs:
        resume['load_from'] = kwargs.pop('load_from')
    evaluation = {}
    if scores is not None:
        Score.scores = [*scores]
        evaluation = dict(
            val_dataloader=dict(
                dataset=DATA, batch_size=4, sampler=dict(type='DefaultSampler')
            ),
            val_cfg=dict(),
            val_evaluator=Evaluator([Score()]),
        )
    runner = Runner(
        model=Model(),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=DATA, batch_size=1, sampler=dict(type='InfiniteSampler')
        ),
        train_cfg=dict(by_epoch=False, max_iters=iters, val_interval=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(
            checkpoint=dict(type=hook, by_epoch=False, interval=2, **kwargs)
        ),
        experiment_name=f'{Path(folder).name}_{next(count)}',
        default_scope='mmengine',
        log_level=log_level,
        **resume,
        **evaluation,
    )
    runner.train()
    return runner


def names(folder, pattern='*.pth'):
    return sorted(path.name for path in folder.glob(pattern))


def iteration(path):
    return load_weights_only(path)['meta']['iter']


def test_configs_get_it_in_place_of_mmengines():
    hook = HOOKS.build(dict(type='SafeCheckpointHook', interval=5))
    assert isinstance(hook, CheckpointHook)
    assert hook.interval == 5


@pytest.mark.parametrize('keep', [-1, 1, 2])
def test_files_are_those_of_mmengine(tmp_path, keep):
    kept = {}
    for hook in ('CheckpointHook', 'SafeCheckpointHook'):
        folder = tmp_path / hook
        train(
            folder, scores=[1, 3, 2], hook=hook, max_keep_ckpts=keep, save_best='mIoU'
        )
        kept[hook] = names(folder)
        assert (folder / 'last_checkpoint').read_text() == str(folder / 'iter_6.pth')
        hub = load_weights_only(folder / 'iter_6.pth')['message_hub']['runtime_info']
        kept[hook].append(hub.get('keep_ckpt_ids'))
        assert hub['best_ckpt'] == str(folder / 'best_mIoU_iter_4.pth')
    assert kept['SafeCheckpointHook'] == kept['CheckpointHook']
    assert 'best_mIoU_iter_4.pth' in kept['SafeCheckpointHook']
    assert 'best_mIoU_iter_2.pth' not in kept['SafeCheckpointHook']


def test_best_of_several_scores(tmp_path):
    best = dict(save_best=['mIoU', 'loss'], rule=['greater', 'less'])
    train(tmp_path, scores=[1, 3, 2], **best)
    assert names(tmp_path, 'best*') == ['best_loss_iter_4.pth', 'best_mIoU_iter_4.pth']


def test_old_files_are_removed_last(tmp_path, monkeypatch):
    removed = []

    def remove(path):
        files = names(tmp_path)
        removed.append((Path(path).name, files))
        assert (tmp_path / 'last_checkpoint').read_text() != path
        original(path)

    original = os.remove
    monkeypatch.setattr(os, 'remove', remove)
    train(tmp_path, scores=[1, 2, 0], max_keep_ckpts=1, save_best='mIoU')
    assert [name for name, _ in removed] == [
        'iter_2.pth',
        'best_mIoU_iter_2.pth',
        'iter_4.pth',
    ]
    for name, files in removed:
        number = name.replace('2', '4') if '2' in name else 'iter_6.pth'
        assert number in files


def test_evaluation_that_repeats_after_a_resume_keeps_the_best(tmp_path):
    """The one to remove and the one just written have the same name."""
    train(tmp_path, iters=4, scores=[1, 2], save_best='mIoU')
    train(
        tmp_path,
        iters=4,
        scores=[5],
        save_best='mIoU',
        resume=True,
        load_from=str(tmp_path / 'iter_2.pth'),
    )
    assert names(tmp_path, 'best*') == ['best_mIoU_iter_4.pth']


def test_published_checkpoint(tmp_path):
    train(tmp_path, published_keys=['meta', 'state_dict'])
    (name,) = names(tmp_path, 'iter_6-*.pth')
    assert load_weights_only(tmp_path / name).keys() == {'meta', 'state_dict'}
    assert not list(tmp_path.glob('.*'))


def test_folder_of_its_own(tmp_path):
    """It is resumed from there too, by its number."""
    elsewhere = dict(out_dir=str(tmp_path / 'other'))
    train(tmp_path / 'work', **elsewhere)
    assert names(tmp_path / 'other' / 'work') == [f'iter_{i}.pth' for i in (2, 4, 6)]
    last = tmp_path / 'work' / 'last_checkpoint'
    assert last.read_text() == str(tmp_path / 'other' / 'work' / 'iter_6.pth')
    last.unlink()
    runner = train(tmp_path / 'work', iters=8, resume=True, **elsewhere)
    assert runner.iter == 8
    assert iteration(tmp_path / 'other' / 'work' / 'iter_8.pth') == 8


def test_a_damaged_latest_one_falls_back(tmp_path):
    train(tmp_path)
    whole = (tmp_path / 'iter_6.pth').read_bytes()
    (tmp_path / 'iter_6.pth').write_bytes(whole[:-100])
    runner = train(tmp_path, iters=6, resume=True)
    assert runner._load_from == str(tmp_path / 'iter_4.pth')
    assert iteration(tmp_path / 'iter_6.pth') == 6
    assert names(tmp_path) == ['iter_2.pth', 'iter_4.pth', 'iter_6.pth']


def test_the_notice_is_logged(tmp_path):
    train(tmp_path)
    (tmp_path / 'iter_6.pth').unlink()
    train(tmp_path, resume=True, log_level='WARNING')
    logs = ''.join(path.read_text() for path in tmp_path.glob('*/*.log'))
    assert 'which was saved last, does not exist; resuming from' in logs


def test_a_damaged_one_that_was_asked_for_is_an_error(tmp_path):
    train(tmp_path)
    (tmp_path / 'iter_4.pth').write_bytes(b'')
    with pytest.raises(CheckpointError, match=r'iter_4\.pth is empty; .*iter_6\.pth$'):
        train(tmp_path, resume=True, load_from=str(tmp_path / 'iter_4.pth'))


def test_weights_to_start_from_are_no_business_of_its(tmp_path):
    train(tmp_path / 'a')
    runner = train(tmp_path / 'b', load_from=str(tmp_path / 'a' / 'iter_6.pth'))
    assert runner.iter == 6
    assert runner._hooks[-1].complete == str(tmp_path / 'b' / 'iter_6.pth')


def test_resume_without_any_checkpoint_starts(tmp_path):
    assert train(tmp_path, resume=True).iter == 6


def test_left_overs_of_a_killed_run_are_deleted(tmp_path):
    others = ('.gitignore', '.iter_2.pth', '.notes.iter_2.pth.abcdefgh', 'iter_x')
    left = ('.iter_4.pth.abc_1234', '.best_mIoU_iter_2.pth.12345678')
    for name in (*others, *left, '.last_checkpoint.abcdefgh'):
        (tmp_path / name).write_text('')
    (tmp_path / '.publish.abc').mkdir()
    train(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} >= set(others)
    assert not [path for path in tmp_path.glob('.*') if path.name not in others]


def test_other_backends_are_as_mmengine_has_them(tmp_path):
    hook = SafeCheckpointHook(backend_args=dict(backend='local'), by_epoch=False)
    assert hook.backend_args == dict(backend='local')
    train(tmp_path, backend_args=dict(backend='local'))
    assert 'iter_6.pth' in names(tmp_path)
