"""The batch for SNIP comes as the training's own, whose streams stay untouched."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.datasets.samplers import (
    AspectRatioBatchSampler,
    GroupMultiSourceSampler,
    MultiSourceSampler,
)
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner import Runner, set_random_seed
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
)

from pelk_mm.sparsity.batch import draw_batch


class Shapes(Dataset):
    """Items that are their indices; every third image is upright."""

    metainfo = dict()

    def __init__(self, length, start=0):
        self.length, self.start = length, start

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return dict(inputs=self.start + index)

    def get_data_info(self, index):
        upright = (self.start + index) % 3 == 0
        return dict(width=1 if upright else 2, height=2 if upright else 1)


class TwoSources(ConcatDataset):
    """The 22 images of two such data sets."""

    def __init__(self):
        super().__init__([Shapes(10), Shapes(12, start=10)])

    get_data_info = Shapes(22).get_data_info


def runner_of(dataset, sampler, seed=3, **cfg):
    """What of a runner is asked: its config, and the loader that it has made of it."""
    cfg = dict(
        dataset=dataset, sampler=sampler, num_workers=0, **dict(batch_size=4) | cfg
    )
    return SimpleNamespace(
        _train_dataloader=cfg, train_dataloader=Runner.build_dataloader(cfg, seed=seed)
    )


def drawn(runner, seed=7):
    return draw_batch(runner, seed)['inputs']


SAMPLERS = {
    'infinite': dict(sampler=dict(type='InfiniteSampler')),
    'in order': dict(sampler=dict(type=InfiniteSampler, shuffle=False)),
    'default': dict(sampler=dict(type='DefaultSampler')),
    'dropping': dict(sampler=dict(type='DefaultSampler'), drop_last=True),
    'grouping': dict(
        sampler=dict(type='DefaultSampler'),
        batch_sampler=dict(type=AspectRatioBatchSampler),
    ),
    'sources': dict(
        sampler=dict(type=MultiSourceSampler, batch_size=4, source_ratio=[1, 3])
    ),
    'groups of sources': dict(
        sampler=dict(type=GroupMultiSourceSampler, batch_size=4, source_ratio=[1, 3])
    ),
}


@pytest.mark.parametrize('name', SAMPLERS)
def test_it_is_the_first_of_a_training_with_that_seed(name):
    dataset = TwoSources()
    runner = runner_of(dataset, **SAMPLERS[name])
    set_random_seed(7)
    expected = next(iter(runner_of(dataset, seed=7, **SAMPLERS[name]).train_dataloader))
    set_random_seed(7)
    batch = drawn(runner)
    assert batch == expected['inputs']
    assert len(batch) == 4
    if 'group' in name:
        assert len({index % 3 == 0 for index in batch}) == 1
    if 'sources' in name:
        assert [index >= 10 for index in batch] == [False, True, True, True]


@pytest.mark.parametrize('begun', [0, 2])
@pytest.mark.parametrize('name', SAMPLERS)
def test_the_streams_of_the_training_stay_untouched(name, begun):
    def batches(draws):
        np.random.seed(0)
        runner = runner_of(TwoSources(), **SAMPLERS[name])
        iterator = iter(runner.train_dataloader)
        first = [next(iterator)['inputs'] for _ in range(begun)]
        if draws:
            state = np.random.get_state()
            drawn(runner)
            np.random.set_state(state)
        return first + [batch['inputs'] for batch in islice(iterator, 3)]

    assert batches(draws=True) == batches(draws=False)


@pytest.mark.parametrize('length', [1, 3])
def test_a_small_data_set_repeats_where_the_training_repeats_it(length):
    infinite = drawn(runner_of(Shapes(length), dict(type='InfiniteSampler')))
    assert len(infinite) == 4
    assert set(infinite) == set(range(length))
    default = drawn(runner_of(Shapes(length), dict(type='DefaultSampler')))
    assert sorted(default) == list(range(length))


def test_a_batch_that_the_training_drops_is_refused():
    runner = runner_of(Shapes(3), dict(type='DefaultSampler'), drop_last=True)
    with pytest.raises(ValueError, match='have no batch: .* drop_last'):
        drawn(runner)


@pytest.mark.parametrize('sampler', ['InfiniteSampler', 'DefaultSampler'])
def test_ranks_have_batches_of_their_own(monkeypatch, sampler):
    batches = []
    for rank in range(2):
        monkeypatch.setattr(
            'mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, 2)
        )
        batches.append(drawn(runner_of(Shapes(8), dict(type=sampler))))
    assert sorted(sum(batches, [])) == list(range(8))


def test_a_seed_in_the_config_is_the_samplers():
    runner = runner_of(Shapes(20), dict(type='InfiniteSampler', seed=5))
    assert drawn(runner, 1) == drawn(runner, 2)
    runner = runner_of(Shapes(20), dict(type='InfiniteSampler'))
    assert drawn(runner, 1) != drawn(runner, 2)


def test_epochs_of_a_few_batches():
    runner = runner_of(Shapes(20), dict(type='DefaultSampler'), num_batch_per_epoch=2)
    assert max(drawn(runner)) < 8


def as_list(items):
    return [item['inputs'] for item in items]


class Forgetful(Sampler):
    """It does not keep what it was made with."""

    def __init__(self, images):
        self.length = len(images)

    def __iter__(self):
        return iter(range(self.length))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(dict(inputs=index) for index in range(10))


def loader_of(sampler, **kwargs):
    loader = DataLoader(
        sampler.dataset if hasattr(sampler, 'dataset') else Shapes(20),
        **(dict(batch_size=4, sampler=sampler) | kwargs),
        collate_fn=as_list,
    )
    return SimpleNamespace(_train_dataloader=loader, train_dataloader=loader)


@pytest.mark.parametrize('kind', [InfiniteSampler, DefaultSampler])
def test_a_loader_without_a_config(kind):
    runner = loader_of(kind(Shapes(20), seed=3))
    batch = draw_batch(runner, 7)
    assert batch == next(iter(loader_of(kind(Shapes(20), seed=7)).train_dataloader))
    expected = next(iter(loader_of(kind(Shapes(20), seed=3)).train_dataloader))
    assert next(iter(runner.train_dataloader)) == expected


def test_a_generator_of_the_training_stays_untouched():
    generator = torch.Generator().manual_seed(1)
    runner = loader_of(RandomSampler(Shapes(20), generator=generator))
    before = generator.get_state()
    assert (
        draw_batch(runner, 7)
        == torch.randperm(20, generator=torch.Generator().manual_seed(7)).tolist()[:4]
    )
    assert torch.equal(generator.get_state(), before)


def test_a_batch_sampler_without_a_config():
    batches = BatchSampler(InfiniteSampler(Shapes(2), seed=3), 5, drop_last=True)
    runner = loader_of(None, batch_size=1, batch_sampler=batches)
    assert len(draw_batch(runner, 7)) == 5
    assert len(set(draw_batch(runner, 7))) == 2


def test_data_that_come_in_batches():
    loader = DataLoader(Shapes(20), batch_size=None, shuffle=True)
    runner = SimpleNamespace(train_dataloader=loader)
    assert draw_batch(runner, 7)['inputs'] in range(20)
    loader = DataLoader(Stream(), batch_size=3, collate_fn=as_list)
    assert draw_batch(SimpleNamespace(train_dataloader=loader), 7) == [0, 1, 2]


def test_samplers_that_cannot_be_built_again_are_refused():
    runner = loader_of(Forgetful(Shapes(20)))
    with pytest.raises(ValueError, match=r"another Forgetful.*argument images.*'erk'"):
        draw_batch(runner, 7)
    with pytest.raises(ValueError, match=r"come from list.*init='erk'"):
        draw_batch(SimpleNamespace(train_dataloader=[]), 7)
