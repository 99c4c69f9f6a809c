"""Two processes: one decides what is resumed, and no layer is waited for in vain."""

import json
import os

import pytest
import torch
from mmengine.hooks import Hook
from torch import distributed

from pelk_mm.engine.finite_loss import NotFiniteError


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

    def run(name, **settings):
        def train(rank):
            distributed.init_process_group(
                'gloo', f'file://{tmp_path / name}', rank=rank, world_size=2
            )
            runner = make_small(tmp_path / 'out', ranks=2, **settings)
            note = {}
            try:
                runner.train()
            except NotFiniteError as error:
                note['error'] = str(error)
            weights = runner.model.module.state_dict().values()
            note['weights'] = [value.double().sum().item() for value in weights]
            note['start'] = runner._load_from
            (tmp_path / f'{name}_{rank}.json').write_text(json.dumps(note))

        children = []
        for rank in range(2):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
                    train(rank)
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        for child in children:
            assert kills.read_status(os.waitpid(child, 0)[1]) == 0
        paths = [tmp_path / f'{name}_{rank}.json' for rank in range(2)]
        return [json.loads(path.read_text()) for path in paths]

    return run


@pytest.mark.skipif(not distributed.is_available(), reason='torch is built without')
def test_both_resume_from_what_the_first_one_finds(run_ranks, tmp_path):
    whole = run_ranks('whole')
    assert whole[0]['weights'][:4] == whole[1]['weights'][:4]
    (tmp_path / 'out' / 'iter_7.pth').write_bytes(b'')
    again = run_ranks('again', resume=True)
    assert [note['start'] for note in again] == [str(tmp_path / 'out/iter_6.pth')] * 2
    assert [note['weights'] for note in again] == [note['weights'] for note in whole]


@pytest.mark.skipif(not distributed.is_available(), reason='torch is built without')
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
