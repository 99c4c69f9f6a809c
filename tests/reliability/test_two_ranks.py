"""Two processes: one decides what is resumed, and none is waited for in vain."""

import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from torch import distributed

from pelk_mm.engine import RankDataHook
from pelk_mm.engine.data_check import DataCheckError
from pelk_mm.engine.finite_loss import NotFiniteError

pytestmark = pytest.mark.skipif(
    not distributed.is_available(), reason='torch is built without'
)


class Spoil(Hook):
    """Makes the images of one rank infinite in its fourth iteration."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and runner.iter == 3:
            runner.model.module.backbone[2].register_forward_hook(
                lambda module, inputs, output: output / 0
            )


@pytest.fixture
def run_ranks(make_small, kills, tmp_path):
    """Runs a training in two forked processes; returns what each noted."""

    def run(name, lengths=None, **settings):
        def train(rank):
            if lengths:
                settings['data'] = Part(lengths)
            runner = make_small(tmp_path / 'out', ranks=2, **settings)
            note = {}
            try:
                runner.train()
            except (NotFiniteError, DataCheckError) as error:
                note['error'] = str(error)
            weights = runner.model.module.state_dict().values()
            note['weights'] = [value.double().sum().item() for value in weights]
            note['start'] = runner._load_from
            return note

        return kills.run_two_ranks(tmp_path / name, train)

    return run


def test_both_resume_from_what_the_first_one_finds(run_ranks, tmp_path):
    whole = run_ranks('whole')
    assert whole[0]['weights'][:4] == whole[1]['weights'][:4]
    (tmp_path / 'out' / 'iter_7.pth').write_bytes(b'')
    again = run_ranks('again', resume=True)
    assert [note['start'] for note in again] == [str(tmp_path / 'out/iter_6.pth')] * 2
    assert [note['weights'] for note in again] == [note['weights'] for note in whole]


def test_both_stop_where_one_of_them_has_no_finite_loss(run_ranks, tmp_path):
    notes = run_ranks('bad', hooks=[Spoil()])
    assert 'iteration 4: the gradients of 8 of 8 parameters' in notes[0]['error']
    assert 'are finite in this process; another one says' in notes[0]['error']
    for part in (
        'iteration 4: loss_cls is nan; the output of backbone.2 (ReLU) is not finite',
        f'Resume from {tmp_path / "out" / "iter_2.pth"} with clipped gradients',
    ):
        assert part in notes[1]['error']
    assert all(
        torch.isfinite(torch.tensor(note['weights'][:1])).all() for note in notes
    )
    assert not (tmp_path / 'out' / 'iter_4.pth').exists()


class Part(torch.utils.data.Dataset):
    """As many images as the rank's copy of the data has."""

    def __init__(self, lengths):
        self.length = lengths[get_rank()]

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return dict(inputs=torch.full((3, 9, 9), index / 16))


class Broken(DefaultSampler):
    """Rank 1 leaves out what would be its last batch."""

    def __iter__(self):
        indices = list(super().__iter__())
        return iter(indices[:-4] if self.rank == 1 else indices)


def test_a_rank_that_has_fewer_batches(run_ranks):
    """17 images that are not filled up to 18 are 3 batches of 4 here, there 2."""
    notes = run_ranks(
        'fewer',
        epochs=True,
        lengths=[17, 17],
        sampler=dict(type='DefaultSampler', shuffle=True, round_up=False),
        hooks=[RankDataHook()],
    )
    message = (
        'train_dataloader has 3 batches per epoch in rank 0, but 2 in rank 1; let its '
        "sampler repeat samples until all ranks have as many: dict(type='DefaultSamp"
    )
    assert all(note['error'].startswith(message) for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize('epochs', [False, True])
def test_a_rank_that_has_fewer_images(run_ranks, epochs):
    notes = run_ranks('images', epochs=epochs, lengths=[16, 12], hooks=[RankDataHook()])
    for note in notes:
        assert 'has 16 samples in rank 0, but 12 in rank 1; give every' in note['error']


def test_a_rank_whose_data_end_early_says_so_and_does_not_go_on(
    make_small, kills, tmp_path
):
    """Its end closes the connection, so that the other does not wait either."""

    def train(rank):
        sampler = dict(type=Broken, shuffle=True)
        hooks = [RankDataHook()]
        runner = make_small(
            tmp_path / 'out', ranks=2, epochs=True, sampler=sampler, hooks=hooks
        )
        try:
            runner.train()
        except (DataCheckError, RuntimeError) as error:
            # As the end of the process would.
            torch.distributed.destroy_process_group()
            return type(error).__name__, str(error)
        return None

    first, second = kills.run_two_ranks(tmp_path / 'early', train)
    assert first[0] == 'RuntimeError'
    assert second[0] == 'DataCheckError'
    assert second[1].startswith(
        'the training data of rank 1 ended after 1 of 2 batches; Broken or the batch'
    )


@pytest.mark.slow
def test_ranks_of_as_much_data_go_on(run_ranks):
    whole = run_ranks('equal', epochs=True, hooks=[RankDataHook()])
    assert [note.get('error') for note in whole] == [None, None]
    assert whole[0]['weights'][:4] == whole[1]['weights'][:4]
