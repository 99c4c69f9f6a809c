"""What the benchmarks share, and that each of them starts."""

import functools
import runpy
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / 'benchmarks'
#: What scripts import, no scripts.
SHARED_PARTS = ('timing', 'sass')
SCRIPTS = sorted(p for p in BENCHMARKS.glob('*.py') if p.stem not in SHARED_PARTS)


@pytest.fixture
def timing():
    return runpy.run_path(str(BENCHMARKS / 'timing.py'))


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.stem)
def test_help(script, monkeypatch, capsys):
    """Every script imports what it needs and says how it is called."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, 'argv', [str(script), '--help'])
    known = set(sys.modules)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name='__main__')
    for name in {'ops', *SHARED_PARTS} - known:
        sys.modules.pop(name, None)
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert f'python benchmarks/{script.name}' in output
    assert '--help' in output


def test_works_take_turns_in_changing_order(timing):
    calls = []

    def work(name, seconds):
        calls.append(name)
        return next(seconds)

    works = {
        name: functools.partial(work, name, iter(seconds))
        for name, seconds in {
            'a': [100.0, 1.0, 5.0, 3.0, 2.0, 4.0],
            'b': [100.0, 6.0, 6.0, 6.0, 6.0, 6.0],
            'c': [100.0, 9.0, 9.0, 9.0, 9.0, 9.0],
        }.items()
    }
    medians = timing['take_turns'](works, turns=5)
    # The first call of each does not count.
    assert medians == {'a': 3.0, 'b': 6.0, 'c': 9.0}
    assert calls[:3] == ['a', 'b', 'c']
    turns = [calls[i : i + 3] for i in range(3, len(calls), 3)]
    assert len(turns) == 5
    assert all(sorted(turn) == ['a', 'b', 'c'] for turn in turns)
    assert len(set(map(tuple, turns))) > 1


def test_turns_go_on_until_time_is_up(timing, monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr('time.perf_counter', lambda: float(next(now)))
    turns = []
    timing['take_turns']({'a': lambda: turns.append(0) or 1.0}, seconds=8.5, turns=3)
    assert len(turns) == 1 + 8


def test_ratios(timing):
    medians = {'ours': 2.0, 'theirs': 5.0, 'reference': 1.0}
    assert timing['ratios'](medians, 'ours') == {'theirs': 2.5, 'reference': 0.5}


@pytest.mark.parametrize(('threads', 'name'), [(1, 'thread_time'), (2, 'perf_counter')])
def test_clock_of_one_thread_is_the_processors(timing, monkeypatch, threads, name):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    monkeypatch.setattr(f'time.{name}', lambda: 7.0)
    assert timing['clock']() == 7.0


def test_median_leaves_out_the_first_calls(timing, monkeypatch):
    now = iter([0.0, 1.0, *(t for s in (3.0, 9.0, 5.0) for t in (0.0, s))])
    monkeypatch.setitem(timing['seconds_of'].__globals__, 'clock', lambda: next(now))
    calls = []
    assert timing['median_seconds'](lambda: calls.append(0)) == 5.0
    assert len(calls) == 5


def test_what_times_depend_on(timing, capsys):
    threads = torch.get_num_threads()
    try:
        machine = timing['prepare'](1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert machine['torch'] == torch.__version__
    assert machine['threads'] == 1
    output = capsys.readouterr().out
    assert all(f'{key}: {value}' in output for key, value in machine.items())
