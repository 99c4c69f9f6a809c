import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.model import BaseModel
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner, set_random_seed
from torch import nn

from pelk_mm.engine.random_state import IterationSeedHook, preserve_random_state


def draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_state_is_preserved():
    set_random_seed(1)
    first, second = draw(), draw()
    set_random_seed(1)
    assert draw() == first
    with preserve_random_state():
        set_random_seed(99)
        draw()
    assert draw() == second


@pytest.mark.parametrize('seed', [0, 2**31, 2**32 - 1])
@pytest.mark.parametrize('rank', [0, 1, 4095])
def test_every_rank_has_a_valid_seed(monkeypatch, seed, rank):
    # numpy takes no seed of 2**32 or more.
    monkeypatch.setattr('pelk_mm.engine.random_state.get_rank', lambda: rank)
    runner = SimpleNamespace(seed=seed, iter=10**6)
    IterationSeedHook().before_train_iter(runner, 0)
    drawn = draw()
    set_random_seed((seed + 104_395_301 * rank + 10**6) % 2**32)
    assert draw() == drawn


def test_setting_the_seed_touches_no_flag(monkeypatch, capsys):
    def flags():
        cudnn = torch.backends.cudnn
        return (
            cudnn.benchmark,
            cudnn.deterministic,
            torch.are_deterministic_algorithms_enabled(),
        )

    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    before = flags()
    IterationSeedHook().before_train_iter(SimpleNamespace(seed=0, iter=1), 0)
    assert flags() == before
    assert not any(capsys.readouterr())


class Noise(BaseModel):
    """Its loss is what the three generators drew for the batch and the model."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, inputs, mode='tensor'):
        self.seen.append((float(inputs[0]), draw()))
        return dict(loss=self.weight * 1.0)


class Draws:
    """Items of an index and of what the transforms drew, which is less than 1."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(inputs=torch.tensor(sum(draw()) / 3 + index, dtype=torch.float64))


class LateStream:
    """A data iterator as onedl-mmengine's: made late, and skipped without drawing."""

    def __init__(self, loader):
        self.loader = loader
        self.iterator = None

    def __next__(self):
        if self.iterator is None:
            self.iterator = iter(self.loader)
        return next(self.iterator)

    def skip_iter(self, num_iters):
        for _ in range(num_iters * self.loader.batch_size):
            next(self.loader.sampler.indices)


@LOOPS.register_module()
class LateLoop(IterBasedTrainLoop):
    """An iteration-based loop that resumes as onedl-mmengine's."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dataloader_iterator = LateStream(self.dataloader)

    def run(self):
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        if self._iter > 0:
            self.dataloader_iterator.skip_iter(self._iter)
        while self._iter < self._max_iters:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))


@LOOPS.register_module()
class OtherLoop(BaseLoop):
    """Neither of mmengine's training loops."""

    iter = epoch = 0
    max_iters = max_epochs = 1

    def run(self):
        self.runner.call_hook('before_train_epoch')


def train(work_dir, epochs, name, loop, seeded=True, workers=0, **kwargs):
    limits = {
        'EpochBasedTrainLoop': dict(max_epochs=4),
        'OtherLoop': dict(),
    }.get(loop, dict(max_iters=12))
    runner = Runner(
        model=Noise(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Draws(),
            batch_size=2,
            num_workers=workers,
            sampler=dict(
                type='DefaultSampler' if epochs else 'InfiniteSampler', shuffle=True
            ),
        ),
        train_cfg=dict(type=loop, **limits),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', by_epoch=epochs, interval=2 if epochs else 5
            )
        ),
        custom_hooks=[IterationSeedHook()] if seeded else [],
        randomness=dict(seed=0),
        experiment_name=f'{work_dir.name}_{name}',
        default_scope='mmengine',
        **kwargs,
    )
    runner.train()
    return runner.model.seen


@pytest.mark.parametrize(
    ('loop', 'saved', 'start'),
    [
        ('IterBasedTrainLoop', 'iter_5.pth', 5),
        ('LateLoop', 'iter_5.pth', 5),
        ('EpochBasedTrainLoop', 'epoch_2.pth', 8),
    ],
)
def test_a_resumed_run_draws_the_same(tmp_path, loop, saved, start):
    epochs = loop == 'EpochBasedTrainLoop'
    whole = train(tmp_path, epochs, 'whole', loop)
    assert len(set(whole)) == len(whole)
    rest = train(
        tmp_path, epochs, 'rest', loop, resume=True, load_from=str(tmp_path / saved)
    )
    assert rest == whole[start:]


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    ('loop', 'saved', 'start'),
    [
        ('IterBasedTrainLoop', 'iter_5.pth', 5),
        ('EpochBasedTrainLoop', 'epoch_2.pth', 8),
    ],
)
def test_what_a_resumed_run_repeats_without_it(tmp_path, loop, saved, start, workers):
    """As docs/sparsity.md says."""
    arguments = (tmp_path, loop == 'EpochBasedTrainLoop')
    settings = dict(loop=loop, seeded=False, workers=workers)
    whole = train(*arguments, 'whole', **settings)
    rest = train(
        *arguments,
        'rest',
        resume=True,
        load_from=str(tmp_path / saved),
        **settings,
    )
    assert [int(data) for data, _ in rest] == [int(data) for data, _ in whole[start:]]
    pairs = list(zip(rest, whole[start:], strict=True))
    # onedl-mmengine skips data without loading it.
    skips = hasattr(InfiniteSampler, 'skip') and loop == 'IterBasedTrainLoop'
    if workers and not skips:
        assert all(data == expected for (data, _), (expected, _) in pairs)
    else:
        assert not any(data == expected for (data, _), (expected, _) in pairs)
    assert not any(drawn == expected for (_, drawn), (_, expected) in pairs)


def test_another_loop_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r'data of OtherLoop in mmengine \d.*train'):
        train(tmp_path, False, 'other', 'OtherLoop')


def test_a_loop_without_its_iterator_is_refused():
    loop = object.__new__(IterBasedTrainLoop)
    runner = SimpleNamespace(train_loop=loop, seed=0, iter=0)
    with pytest.raises(RuntimeError, match='with its dataloader_iterator'):
        IterationSeedHook().before_train_epoch(runner)
