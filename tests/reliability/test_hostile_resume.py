"""A training that is told to go on from a checkpoint which is not what it seems."""

import re

import pytest
import torch

from pelk_mm.checkpoints.files import CheckpointError


@pytest.fixture(scope='module')
def trained(make_small, tmp_path_factory):
    """Content of a checkpoint in the middle of a training."""
    folder = tmp_path_factory.mktemp('trained')
    make_small(folder, iters=2).train()
    return torch.load(folder / 'iter_2.pth', weights_only=False)


def resume(make_small, folder, content):
    torch.save(content, folder / 'iter_2.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_2.pth'))
    make_small(folder, iters=3, resume=True).train()


@pytest.mark.parametrize('key', ['config', 'cfg'])
def test_text_in_its_notes_is_not_run(make_small, trained, tmp_path, key):
    marker = tmp_path / 'marker'
    meta = {**trained['meta'], key: f'x = open({str(marker)!r}, "w")'}
    resume(make_small, tmp_path, {**trained, 'meta': meta})
    assert not marker.exists()


@pytest.mark.parametrize('number', [1 << 60, -1, 4, 2.5, '2', None, True])
def test_iteration_that_the_training_does_not_have(
    make_small, trained, tmp_path, number
):
    content = {**trained, 'meta': {**trained['meta'], 'iter': number}}
    reason = re.escape(f'the checkpoint is at iter {number!r}, and the training goes')
    with pytest.raises(CheckpointError, match=f'{reason}|no other checkpoint'):
        resume(make_small, tmp_path, content)


@pytest.mark.parametrize(
    ('entry', 'value'),
    [
        ('optimizer', 3),
        ('optimizer', {}),
        ('optimizer', {'state': {}, 'param_groups': []}),
        ('optimizer', {'state': {0: 'x'}, 'param_groups': [{'params': [0]}]}),
        ('message_hub', {}),
        ('message_hub', 'x'),
        ('message_hub', {'log_scalars': 3, 'runtime_info': 3, 'resumed_keys': 3}),
        ('param_schedulers', 'x'),
        ('param_schedulers', [3]),
        ('state_dict', 3),
        ('ema_state_dict', 3),
    ],
)
def test_state_that_is_none(make_small, trained, tmp_path, entry, value):
    with pytest.raises(CheckpointError, match=r'iter_2\.pth'):
        resume(make_small, tmp_path, {**trained, entry: value})


def test_state_that_repeats_one_value(make_small, trained, tmp_path):
    state = {0: {'exp_avg': torch.zeros(1).expand(1 << 40)}}
    optimizer = {**trained['optimizer'], 'state': state}
    with pytest.raises(CheckpointError, match='repeats values'):
        resume(make_small, tmp_path, {**trained, 'optimizer': optimizer})


@pytest.fixture(scope='module')
def sparse(make_small, tmp_path_factory):
    """Content of a checkpoint in the middle of a sparse training."""
    folder = tmp_path_factory.mktemp('sparse')
    make_small(folder, iters=2, sparse=True).train()
    return torch.load(folder / 'iter_2.pth', weights_only=False)


@pytest.mark.parametrize(
    ('entry', 'value'),
    [
        (None, 3),
        ('masks', None),
        ('masks', 'shape'),
        ('dense', 3),
        ('steps', 'x'),
        ('generator', None),
        ('generator', torch.zeros(3)),
    ],
)
def test_masks_that_are_none(make_small, sparse, tmp_path, entry, value):
    changed = value if entry is None else {**sparse['sparsity'], entry: value}
    if isinstance(value, str) and value == 'shape':
        masks = dict.fromkeys(sparse['sparsity']['masks'], torch.ones(1).bool())
        changed = {**sparse['sparsity'], 'masks': masks}
    torch.save({**sparse, 'sparsity': changed}, tmp_path / 'iter_2.pth')
    with pytest.raises(CheckpointError, match='sparsity entry of the checkpoint'):
        make_small(
            tmp_path,
            iters=3,
            sparse=True,
            resume=True,
            load_from=str(tmp_path / 'iter_2.pth'),
        ).train()
