"""The amount of data of a rank; two real ones are in ``tests/reliability``."""

from types import SimpleNamespace

import pytest
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import DefaultSampler
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from pelk_mm.engine import RankDataHook, rank_data
from pelk_mm.engine.data_check import DataCheckError


@pytest.fixture(autouse=True)
def ranks(monkeypatch):
    """What the two ranks have counted; this one is rank 1."""
    counts = []
    monkeypatch.setattr(rank_data, 'get_world_size', lambda: 2)
    monkeypatch.setattr(rank_data, 'get_rank', lambda: 1)
    monkeypatch.setattr(rank_data, 'all_gather_object', lambda own: [*counts, own])
    return counts


def make_runner(dataset, batches, loop=EpochBasedTrainLoop):
    class Loader:
        sampler = []

        def __len__(self):
            return batches

    loader = Loader()
    loader.dataset = dataset
    train_loop = loop.__new__(loop)
    train_loop.dataloader = loader
    return SimpleNamespace(train_loop=train_loop)


def run_epoch(hook, runner, batches):
    hook.before_train_epoch(runner)
    for _ in range(batches):
        hook.after_train_iter(runner, 0)
    hook.after_train_epoch(runner)


def test_loops_over_iterations_need_no_equal_epochs(ranks):
    ranks.append([('samples', 9)])
    runner = make_runner(range(9), 5, IterBasedTrainLoop)
    hook = RankDataHook()
    hook.before_train(runner)
    run_epoch(hook, runner, 3)
    with pytest.raises(DataCheckError, match='9 samples in rank 0, but 8 in rank 1;'):
        hook.before_train(make_runner(range(8), 5, IterBasedTrainLoop))


def test_streams_have_no_length(ranks):
    ranks.append([])
    RankDataHook().before_train(make_runner(iter(()), 5, IterBasedTrainLoop))


def test_one_process_needs_nobody(monkeypatch):
    monkeypatch.setattr(rank_data, 'get_world_size', lambda: 1)
    hook, runner = RankDataHook(), make_runner(range(9), 5)
    hook.before_train(runner)
    run_epoch(hook, runner, 4)


def test_every_epoch_is_counted():
    hook, runner = RankDataHook(), make_runner(range(9), 5)
    for _ in range(2):
        run_epoch(hook, runner, 5)
    with pytest.raises(DataCheckError, match='of rank 1 ended after 4 of 5 batches; '):
        run_epoch(hook, runner, 4)


class Images(list):
    """Widths of images of height 2."""

    def get_data_info(self, index):
        return dict(width=self[index], height=2)


def batches_of_ranks(widths, drop_last):
    """Batches that each of two ranks gets of two images, and those it expects."""
    counts = []
    for rank in range(2):
        sampler = DefaultSampler(Images(widths), shuffle=False)
        sampler.rank, sampler.world_size = rank, 2
        sampler.num_samples = len(widths) // 2
        batches = AspectRatioBatchSampler(sampler, 2, drop_last)
        counts.append((len(list(batches)), len(batches)))
    return counts


@pytest.mark.parametrize('bits', range(64))
def test_batches_by_aspect_ratio_are_as_many_on_all_ranks(bits):
    """Whichever images are wide: those of our detectors."""
    widths = [1 + 2 * (bits >> i & 1) for i in range(6)] + [1, 3]
    assert batches_of_ranks(widths, False) == [(2, 2), (2, 2)]


def test_mmdet_drops_a_whole_batch_too():
    """What the hook ends in an error, and what is why our detectors do not drop any.

    Of rank 0's four images one is wide, of rank 1's none is.
    """
    widths = [1, 1, 1, 1, 1, 1, 3, 1]
    assert batches_of_ranks(widths, True) == [(1, 2), (2, 2)]
