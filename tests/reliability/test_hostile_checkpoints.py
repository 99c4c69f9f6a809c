"""Damaged and hostile checkpoints: one sentence, and nothing else happens."""

import os
from collections import Counter
from types import SimpleNamespace

import pytest

from . import watched
from .hostile_cases import Checkpoints
from .hostile_readers import checkpoint_readers
from .hostile_tools import (
    checkpoint_calls,
    checkpoint_files,
    make_checkpoints,
    make_data,
    quiet_environment,
)
from .watched import Call, watch, with_baselines


@pytest.fixture(scope='module')
def hostile(tmp_path_factory, kills):
    """Undamaged files, and what damages them."""
    quiet_environment()
    folder = tmp_path_factory.mktemp('hostile')
    config = make_data(folder / 'data')
    kills.run_forked(lambda: make_checkpoints(folder, config))
    cases = Checkpoints(checkpoint_files(folder))

    def write(case, room):
        if case >= 0:
            return cases.write(case, room)
        path = room.input / 'whole.pth'
        path.write_bytes(cases.files['whole.pth'])
        return path

    return SimpleNamespace(
        config=config, image=folder / 'data' / 'images' / '0.png', write=write
    )


def require_harmless(hostile, calls, tasks, folder):
    """Fails with the first of what calls did that they must not do."""
    calls = with_baselines(hostile.write, calls, folder / 'baseline')
    ends = Counter()
    for outcome in watch(hostile.write, calls, tasks, folder / 'damaged'):
        assert not outcome.faults, outcome
        ends[outcome.said] += 1
    return ends


def require_readers(hostile, cases, folder):
    calls = checkpoint_readers(hostile.config)
    ends = require_harmless(hostile, calls, [(n, 0) for n in cases], folder)
    # Both what can be read still and what cannot is among them.
    assert any(said.startswith('0 of') for said in ends)
    assert any(said.startswith('2 of') for said in ends)


@pytest.mark.long
def test_readers_of_all_tools(hostile, tmp_path):
    require_readers(hostile, range(40), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('part', range(10))
def test_readers_of_all_tools_on_ten_thousand_files(hostile, tmp_path, part):
    require_readers(hostile, range(1000 * part, 1000 * (part + 1)), tmp_path)


@pytest.mark.slow
def test_command_lines(hostile, tmp_path):
    calls = checkpoint_calls(hostile.config, hostile.image)
    tasks = [(case, case % len(calls)) for case in range(100 * len(calls))]
    require_harmless(hostile, calls, tasks, tmp_path)


def misbehave(kind):
    """A call that does what none may do."""

    def call(file, out):
        if kind == 'traceback':
            raise KeyError(kind)
        if kind == 'silence':
            raise SystemExit(1)
        if kind == 'memory':
            bytearray(200 << 20)
        if kind == 'effect':
            (out.parent / 'outside' / 'x').write_text('x')
        if kind == 'link':
            (out.parent / 'outside' / 'x').symlink_to('kept')
        if kind == 'hang':
            while True:
                pass
        if kind == 'death':
            os.kill(os.getpid(), 9)

    return Call(kind, call)


@pytest.mark.parametrize(
    'kind', ['traceback', 'silence', 'memory', 'effect', 'link', 'hang', 'death']
)
def test_what_is_watched_for_is_seen(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(watched, 'SECONDS', 0.5)

    def write(case, room):
        path = room.input / 'x'
        path.write_bytes(b'x')
        return path

    harmless = Call('harmless', lambda file, out: (out / 'x').write_text('x'))
    tasks = [(0, 0), (0, 1), (1, 0)]
    calls = [harmless, misbehave(kind)]
    first, bad, last = watch(write, calls, tasks, tmp_path)
    assert first.faults == last.faults == []
    assert any(
        fault.startswith('effect' if kind == 'link' else kind) for fault in bad.faults
    )
