"""Kills inside the writing of a checkpoint, and resumes: a small training."""

import os
import signal
from pathlib import Path

import pytest

from pelk_mm.checkpoints import load_weights_only
from pelk_mm.engine.resume import find_fault

#: Where the process dies: the function, its call, the share of bytes written by then.
#: Of the two files of a checkpoint, the second is last_checkpoint; the third call is
#: for the second checkpoint, after which the first is removed.
MOMENTS = {
    'before the first byte': (Path, 'write_bytes', 3, 0.0),
    'in the middle of the file': (Path, 'write_bytes', 3, 0.5),
    'before it is renamed': (Path, 'replace', 3),
    'before last_checkpoint is complete': (Path, 'write_bytes', 4, 0.5),
    'before last_checkpoint is renamed': (Path, 'replace', 4),
    'before the old one is removed': (os, 'remove', 1),
    'in the very first checkpoint': (Path, 'replace', 1),
}


@pytest.fixture(scope='module', params=[False, True], ids=['dense', 'sparse'])
def settings(request):
    return dict(sparse=request.param, checkpoint=dict(max_keep_ckpts=1))


@pytest.fixture(scope='module')
def expected(make_small, settings, tmp_path_factory):
    """The final checkpoint of the uninterrupted run."""
    folder = tmp_path_factory.mktemp('whole')
    make_small(folder, **settings).train()
    return load_weights_only(folder / 'iter_7.pth')


@pytest.mark.parametrize('moment', MOMENTS.values(), ids=MOMENTS)
def test_kill_inside_the_writing(
    make_small, kills, tmp_path, moment, settings, expected
):
    def train():
        with kills.dying_at(*moment):
            make_small(tmp_path, **settings).train()

    assert kills.run_forked(train) == signal.SIGKILL
    saved = list(tmp_path.glob('iter_*.pth'))
    assert [find_fault(path) for path in saved] == [None] * len(saved)
    make_small(tmp_path, resume=True, **settings).train()
    assert kills.temporary_files(tmp_path) == []
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_7.pth']
    last = load_weights_only(tmp_path / 'iter_7.pth')
    for entry in ('state_dict', 'ema_state_dict'):
        assert kills.differing(last[entry], expected[entry]) == []


def test_mmengine_in_its_place_loses_the_only_checkpoint(make_small, kills, tmp_path):
    """What the tests above would find."""

    def put(backend, content, path):
        Path(path).write_bytes(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.fileio.LocalBackend.put', put)

        def train():
            with kills.dying_at(Path, 'write_bytes', 2, 0.5):
                settings = dict(type='CheckpointHook', max_keep_ckpts=1)
                make_small(tmp_path, checkpoint=settings).train()

        assert kills.run_forked(train) == signal.SIGKILL
    assert [find_fault(path) is None for path in tmp_path.glob('*.pth')] == [False]


@pytest.mark.parametrize('workers', [0, 2])
def test_epochs(make_small, kills, tmp_path, workers):
    """Persistent workers draw the same numbers after a resume."""
    settings = dict(epochs=True, workers=workers)
    make_small(tmp_path / 'whole', **settings).train()

    def train():
        with kills.dying_at(Path, 'replace', 6):
            make_small(tmp_path / 'out', **settings).train()

    assert kills.run_forked(train) == signal.SIGKILL
    make_small(tmp_path / 'out', resume=True, **settings).train()
    expected, last = (
        load_weights_only(tmp_path / out / 'epoch_4.pth') for out in ('whole', 'out')
    )
    for entry in ('state_dict', 'ema_state_dict'):
        assert kills.differing(last[entry], expected[entry]) == []
