"""What the benchmarks share, and that each of them starts."""

import functools
import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / 'benchmarks'
#: What scripts import, no scripts.
SHARED_PARTS = ('timing', 'device_table', 'sass', 'rivals')
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
    for name in {'ops', 'backbones', *SHARED_PARTS} - known:
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
    monkeypatch.setitem(timing['seconds_of'].__globals__, 'clock', lambda _: next(now))
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


# ------------------------------------------------------------------------ on a GPU


@pytest.fixture
def table(monkeypatch):
    """The module of the table, with works of a moment."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in SHARED_PARTS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module('device_table')
    works = (
        module.Work('shared', ((5, 5),), (2, 2, 2, 3), (2, 1, 2)),
        module.Work('stripes', ((5, 1), (1, 5)), (2, 2, 2, 3)),
    )
    monkeypatch.setattr(module, 'WORKS', works)
    yield module
    for name in SHARED_PARTS:
        sys.modules.pop(name, None)


def compare_few(table, **settings):
    few = {'works': table.WORKS, 'maps': [(4, 6)], 'batches': [1], **settings}
    return table.compare_all('cpu', 0.0, **few)


@pytest.mark.long
def test_table_of_a_device(table, capsys, tmp_path):
    picture = tmp_path / 'plot.png'
    rows, right = compare_few(table, plot=str(picture))
    assert right
    assert len(rows) == 2 * 3 * 2
    for row in rows:
        assert row['shape'] == [1, 3, 4, 6]
        assert 0 < row['error'] <= row['bound']
        assert set(row['seconds']) == set(table.METHODS)
        assert all(seconds > 0 for seconds in row['seconds'].values())
    assert {row['dtype'] for row in rows} == {'float32', 'float16', 'bfloat16'}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(rows)
    assert {line.count('|') for line in lines} == {lines[0].count('|')}
    assert picture.stat().st_size > 1000
    json.dumps(rows)


def test_channels_of_a_map(table):
    work = table.Work('', (), (1, 2, 3, 4))
    sizes = ((200, 336), (128, 128), (64, 80), (32, 32), (16, 99))
    assert [work.channels_on(size) for size in sizes] == [1, 1, 2, 3, 4]


@pytest.mark.parametrize('method', ['ours', 'nchw', None])
def test_what_does_not_fit_into_memory_is_marked(table, monkeypatch, capsys, method):
    run = table.Line.run

    def full(self, name, backward):
        if name == method:
            raise torch.OutOfMemoryError('full')
        return run(self, name, backward)

    def nothing(*arguments):
        raise torch.OutOfMemoryError('full')

    monkeypatch.setattr(table.Line, *('run', full) if method else ('maps', nothing))
    rows, right = compare_few(table, dtypes=[torch.float32])
    assert right
    marked = {m for m, t in rows[0]['seconds'].items() if t == 'out of memory'}
    assert marked == ({method} if method else set(table.METHODS))
    assert len(rows) == 4
    assert capsys.readouterr().out.count('out of memory') >= 4


def test_a_wrong_result_is_told(table, monkeypatch, capsys):
    convolve = table.Line.convolve

    def wrong(self, method, x, weights):
        return convolve(self, method, x, weights) * (1.001 if method == 'ours' else 1)

    monkeypatch.setattr(table.Line, 'convolve', wrong)
    rows, right = compare_few(table, dtypes=[torch.float32])
    assert not right
    assert not any(row['right'] for row in rows)
    assert 'WRONG' in capsys.readouterr().out


def test_a_method_that_fails_is_marked_with_its_reason(table, monkeypatch, capsys):
    def fail(x, weights):
        raise RuntimeError('no engine')

    line = table.Line(table.WORKS[1], (1, 2, 4, 4), torch.float32, 'cpu')
    monkeypatch.setattr(line, 'dense', fail)
    assert line.measure(False, 0.0)['nchw'] == 'failed'
    assert 'nchw failed: no engine' in capsys.readouterr().out


def test_methods_far_behind_do_not_take_turns(table, monkeypatch):
    monkeypatch.setattr(table, 'FAR_BEHIND', 0)
    turns = []
    monkeypatch.setattr(table, 'take_turns', lambda works, _: turns.append(works) or {})
    line = table.Line(table.WORKS[1], (1, 2, 4, 4), torch.float32, 'cpu')
    assert set(line.measure(False, 0.0)) == set(table.METHODS)
    assert turns == [{}]


@pytest.mark.parametrize('script', ['ops', 'backbones', 'gpu'])
def test_without_a_gpu_one_sentence(table, monkeypatch, tmp_path, script):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [script, '--device', 'cuda'])
    with pytest.raises(SystemExit, match='cuda: .* finds no NVIDIA GPU here; run it'):
        runpy.run_path(str(BENCHMARKS / f'{script}.py'), run_name='__main__')
    assert list(tmp_path.iterdir()) == []


def test_one_command_writes_everything(table, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table, 'MAPS', ((4, 6),))
    backbones = importlib.import_module('backbones')
    monkeypatch.setattr(backbones, 'compare', lambda *arguments: {'model': {}})
    narrow = {'type': 'PeLK', 'arch': NARROW}
    rates = functools.partial(backbones.throughput, models={'narrow': (narrow, 9)})
    monkeypatch.setattr(backbones, 'throughput', lambda b, device: rates(b, 32))
    threads = str(torch.get_num_threads())
    options = ['--device', 'cpu', '--batch', '1', '--dtype', 'float32']
    options += ['--seconds', '0', '--throughput-batch', '1', '--threads', threads]
    monkeypatch.setattr(sys, 'argv', ['gpu.py', *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / 'gpu.py'), run_name='__main__')
    sys.modules.pop('backbones')
    assert ended.value.code == 0
    found = json.loads((tmp_path / 'gpu.json').read_text())
    assert found['torch'] == torch.__version__
    assert len(found['operators']) == 2 * 2
    assert found['models'] == {'model': {}}
    assert found['images a second']['narrow'] > 0
    text = (tmp_path / 'gpu.md').read_text()
    assert '| shared, 1x3x4x6, float32 | forward + backward |' in text
    assert '| narrow | ' in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ['gpu.json', 'gpu.md']


NARROW = {
    'channels': (8, 8, 8, 8),
    'depths': (1, 1, 1, 1),
    'kernel_sizes': (5, 5, 5, 5),
    'central_radius': 1,
}


def test_models_that_do_not_fit_into_memory(table, monkeypatch, capsys):
    backbones = importlib.import_module('backbones')

    def build(config):
        raise torch.OutOfMemoryError('full')

    monkeypatch.setattr(backbones, 'build', build)
    monkeypatch.setattr(backbones.BACKBONES, 'build', build)
    assert backbones.compare(['a.py'], 1, 32, 1, True) == {}
    rates = backbones.throughput(1, 32)
    sys.modules.pop('backbones')
    assert rates == dict.fromkeys(backbones.THROUGHPUT, 'out of memory')
    assert capsys.readouterr().out.count('| out of memory |') == 5


def test_cuda_is_timed_by_events(timing, monkeypatch):
    scope = timing['seconds_of'].__globals__
    monkeypatch.setitem(scope, 'event_seconds', lambda work: (work(), 4.0)[1])
    done = []
    assert timing['seconds_of'](done.append, 1, device='cuda') == 4.0
    assert done == [1]
    assert timing['median_seconds'](lambda: done.append(2), 'cuda') == 4.0
    assert done == [1, *[2] * 5]


@pytest.mark.parametrize(
    ('output', 'expected'),
    [
        ('1410 MHz, 1980 MHz, 2619 MHz, 2619 MHz\n', 'SM 1410 MHz of 1980 MHz, '),
        (None, 'unknown'),
    ],
)
def test_what_times_depend_on_with_a_card(timing, monkeypatch, output, expected):
    def run(command, **settings):
        assert command[0] == 'nvidia-smi'
        if output is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, output)

    for name in ('benchmark', 'allow_tf32'):
        value = getattr(torch.backends.cudnn, name)
        monkeypatch.setattr(torch.backends.cudnn, name, value)
    allowed = torch.backends.cuda.matmul.allow_tf32
    monkeypatch.setattr(subprocess, 'run', run)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'NVIDIA Nothing')
    monkeypatch.setattr(torch, 'manual_seed', lambda seed: None)
    try:
        machine = timing['prepare'](torch.get_num_threads(), 'cuda')
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    assert machine['card'] == 'NVIDIA Nothing'
    assert machine['clocks'].startswith(expected)
    assert {'driver', 'triton', 'torch'} <= machine.keys()
    assert torch.backends.cudnn.benchmark


# ------------------------------------------------------------------------ rivals


def test_the_best_over_the_best(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    rivals = importlib.import_module('rivals')
    sys.modules.pop('rivals')
    row = functools.partial(rivals.throughput.Row, 'model')
    rows = [
        row('eager', seconds=[9.0, 9.0, 9.0]),
        row('prepared', seconds=[2.0, 3.0, 4.0]),
        row('onnxruntime', seconds=[6.0, 6.0, 6.0]),
        row('openvino', seconds=[4.0, 5.0, 4.0]),
        row('openvino_factored', problem='has none'),
    ]
    theirs = ['onnxruntime', 'openvino', 'openvino_factored']
    ratio, told = rivals.best_ratio(rows, theirs)
    assert ratio == 4 / 3
    assert told == (
        'prepared is 1.33 times as fast as openvino, the best of the others '
        '(1.67 by the median of the turns)'
    )
    assert rivals.best_ratio(rows[:2], theirs) == (None, 'no rival could be measured')


@pytest.mark.long
def test_engines_of_a_narrow_model(monkeypatch, capsys, tmp_path):
    from pelk_mm.analysis.engines import Setting
    from pelk_mm.analysis.workers import LocalWorker

    monkeypatch.syspath_prepend(BENCHMARKS)
    rivals = importlib.import_module('rivals')
    sys.modules.pop('rivals')
    monkeypatch.setattr(rivals, 'ProcessWorker', LocalWorker)
    monkeypatch.setitem(rivals.RIVALS, 'torch', ('plain',))
    config = tmp_path / 'narrow.py'
    config.write_text(
        "default_scope = 'mmseg'\n"
        "model = dict(type='EncoderDecoder', "
        f"backbone=dict(type='PeLK', arch={NARROW}), "
        "decode_head=dict(type='FCNHead', in_channels=8, channels=8, num_classes=2))"
    )
    setting = Setting((64, 64), threads=torch.get_num_threads())
    found = rivals.compare_engines(
        [config], ['torch'], setting, turns=1, forms=('deployed', 'prepared')
    )
    ratio = found['narrow']['ratio']
    engines = [row['engine'] for row in found['narrow']['rows']]
    assert engines == ['eager', 'deployed', 'prepared', 'plain']
    output = capsys.readouterr().out
    assert f'{ratio:.2f} times as fast as plain, the best of the others' in output
    assert all(row['difference'] < 1e-5 for row in found['narrow']['rows'][1:])
