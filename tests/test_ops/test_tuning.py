"""The choice on CUDA by measured times, without a GPU: the stopwatch is a fake."""

import functools
import warnings

import pytest
import torch

from pelk_mm import ops
from pelk_mm.ops import choose, functional, operators, tuning, tuning_file
from pelk_mm.ops.backends.base import Backend
from pelk_mm.ops.problem import Problem

PROBLEM = Problem((2, 8, 16, 16), (5, 5), device='cuda', channels_last=True)
FORWARD, BOTH = ('forward',), ('input', 'weight')


class FakeStopwatch:
    """Says what it is told to: nanoseconds, or an exception, by backend."""

    def __init__(self, times, machine='a GPU', shortage=None):
        self.times, self.name, self.lack = times, machine, shortage
        self.calls = []

    def machine(self):
        return self.name

    def shortage(self, problem):
        return self.lack

    def time(self, problem, candidates):
        self.calls.append((problem, [tuning.label(each) for each in candidates]))
        return {each: self.times[each[0].name] * len(each[1]) for each in candidates}


class FakeTriton(Backend):
    """Serves CUDA, by the cost model too, until it finds out that it cannot."""

    name = 'fake'
    failure = None

    @staticmethod
    def state():
        return FakeTriton.failure

    def why_not(self, problem):
        if problem.device not in ('cuda', 'cpu') or problem.plain:
            return 'it runs on fakes'
        return FakeTriton.failure

    def cost(self, problem, passes):
        return 1.0

    def forward(self, problem, x, weight, bias):
        FakeTriton.failure = 'its compiler is missing'
        raise RuntimeError('no compiler')

    def backward(self, *arguments):
        self.forward(None, None, None, None)


@pytest.fixture
def triton(monkeypatch):
    monkeypatch.delenv(choose.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(FakeTriton, 'failure', None)
    fake = FakeTriton()
    torch_alone = {n: b for n, b in choose.BACKENDS.items() if b.stands_in}
    for module in (choose, functional):
        monkeypatch.setattr(module, 'BACKENDS', {'fake': fake, **torch_alone})
    choose._cheapest.cache_clear()
    choose._states.cache_clear()
    yield fake
    choose._cheapest.cache_clear()
    choose._states.cache_clear()


@pytest.fixture
def tuned(monkeypatch, tmp_path, triton):
    """Starts what a process starts with, a stopwatch given."""
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)

    def start(watch):
        file = tuning_file.TuningFile(tmp_path / 'cache' / 'times.json')
        monkeypatch.setattr(tuning, 'TUNER', tuning.Tuner(watch, file))
        return watch

    start.path = tmp_path / 'cache' / 'times.json'
    return start


TRITON_IS_SLOW = {'fake': 9.0, 'channels_last': 5.0, 'nchw': 3.0, 'torch_fft': 4.0}
TRITON_IS_FAST = {**TRITON_IS_SLOW, 'fake': 1.0}


def names(passes=FORWARD, problem=PROBLEM, **settings):
    return [backend.name for backend in choose.choose(problem, passes, **settings)]


@pytest.mark.parametrize(
    ('times', 'fastest'), [(TRITON_IS_SLOW, 'nchw'), (TRITON_IS_FAST, 'fake')]
)
def test_the_fastest_is_chosen_and_timed_once(tuned, times, fastest):
    watch = tuned(FakeStopwatch(times))
    for _ in range(2):
        assert names() == [fastest]
        assert names(BOTH) == [fastest] * 2
    (_, forward), (_, both) = watch.calls
    assert forward == [f'{name} forward' for name in times]
    # Both gradients in one call, and each alone: 3 of each backend.
    assert len(both) == len(set(both)) == 3 * len(times)
    names(problem=PROBLEM._replace(shape=(2, 8, 16, 17)))
    assert len(watch.calls) == 3


def test_each_gradient_has_its_own_fastest(tuned, monkeypatch):
    watch = tuned(FakeStopwatch(TRITON_IS_SLOW))

    def time(problem, candidates):
        best = {('fake', ('input',)), ('torch_fft', ('weight',))}
        return {c: 1.0 if (c[0].name, c[1]) in best else 5.0 for c in candidates}

    monkeypatch.setattr(watch, 'time', time)
    assert names(BOTH) == ['fake', 'torch_fft']


@pytest.mark.parametrize(
    ('where', 'name', 'value'),
    [
        (torch.backends.cudnn, 'benchmark', False),
        (torch.backends.cudnn, 'deterministic', True),
        (torch, 'are_deterministic_algorithms_enabled', lambda: True),
    ],
)
def test_the_cost_model_where_nobody_asks_for_timing(
    tuned, monkeypatch, where, name, value
):
    watch = tuned(FakeStopwatch(TRITON_IS_SLOW))
    with monkeypatch.context() as patch:
        patch.setattr(where, name, value)
        assert names() == ['fake']
        assert watch.calls == []
    assert names() == ['nchw']


@pytest.mark.parametrize(
    'problem',
    [
        PROBLEM._replace(device='cpu'),
        PROBLEM._replace(device='xpu'),
        PROBLEM._replace(plain=True),
        PROBLEM._replace(shape=(0, 8, 16, 16)),
    ],
)
def test_what_is_not_timed(tuned, problem):
    watch = tuned(FakeStopwatch(TRITON_IS_FAST))
    names(problem=problem)
    assert watch.calls == []


def test_arguments_and_environment_come_first(tuned, monkeypatch):
    watch = tuned(FakeStopwatch(TRITON_IS_SLOW))
    assert names(name='torch_fft') == ['torch_fft']
    monkeypatch.setenv(choose.ENVIRONMENT_VARIABLE, 'channels_last')
    assert names() == ['channels_last']
    assert watch.calls == []


@pytest.mark.parametrize('moment', ['capture', 'compile', 'trace', 'mode'])
def test_never_at_moments_that_record_work(tuned, monkeypatch, moment):
    watch = tuned(FakeStopwatch(TRITON_IS_SLOW))
    names(problem=PROBLEM._replace(shape=(1, 8, 9, 9)))
    true = lambda: True  # noqa: E731
    with monkeypatch.context() as patch:
        if moment == 'capture':
            patch.setattr(torch.cuda, 'is_available', true)
            patch.setattr(torch.cuda, 'is_current_stream_capturing', true)
        elif moment == 'compile':
            patch.setattr(torch.compiler, 'is_compiling', true)
        elif moment == 'trace':
            patch.setattr(torch.jit, 'is_tracing', true)
        else:
            patch.setattr(tuning, 'is_watched', true)
        assert names() == ['fake']
        # What is known is used.
        assert names(problem=PROBLEM._replace(shape=(1, 8, 9, 9))) == ['nchw']
        assert len(watch.calls) == 1
    assert names() == ['nchw']
    assert len(watch.calls) == 2


def test_fake_tensors_of_a_gpu_are_not_timed(tuned):
    watch = tuned(FakeStopwatch(TRITON_IS_SLOW))
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 8, 16, 16, device='cuda')
        out = ops.depthwise_conv2d(x, torch.empty(8, 5, 5, device='cuda'))
        assert names() == ['fake']
    assert out.shape == x.shape
    assert watch.calls == []


# ------------------------------------------------------------------ what goes wrong


def test_what_fails_is_left_out_with_one_warning(tuned):
    failing = {**TRITON_IS_FAST, 'fake': BuildError('ptxas: too many registers\nmore')}
    watch = tuned(FakeStopwatch(failing))
    with pytest.warns(RuntimeWarning) as told:
        found = names(), names(BOTH)
    assert found == (['nchw'], ['nchw'] * 2)
    assert len(told) == 1
    text = str(told[0].message)
    assert "'fake' is left out" in text
    assert 'BuildError: ptxas: too many registers' in text
    # The next process tries again, and is told again.
    watch = tuned(FakeStopwatch(failing))
    with pytest.warns(RuntimeWarning, match='ptxas'):
        assert names() == ['nchw']
    assert len(watch.calls) == 1


class BuildError(RuntimeError):
    """Times whatever, it is itself."""

    def __mul__(self, count):
        return self


def test_where_everything_fails_the_cost_model_chooses(tuned):
    tuned(FakeStopwatch(dict.fromkeys(TRITON_IS_FAST, BuildError('gone'))))
    with pytest.warns(RuntimeWarning) as told:
        assert names() == ['fake']
    assert len(told) == len(TRITON_IS_FAST)


def test_too_little_memory_is_told_once_and_kept_to(tuned):
    watch = tuned(FakeStopwatch(TRITON_IS_SLOW, shortage='it may take 9 MiB'))
    with pytest.warns(RuntimeWarning, match='2x8x16x16 .* it may take 9 MiB') as told:
        assert names() == names() == ['fake']
    assert len(told) == 1
    watch.lack = None
    assert names() == ['fake']
    assert watch.calls == []


@pytest.mark.parametrize('passes', [FORWARD, BOTH])
@pytest.mark.parametrize('benchmark', [False, True])
def test_a_compiler_that_is_missing_leaves_the_work_to_torch(
    tuned, monkeypatch, passes, benchmark
):
    """Found out only when it is called; from then on `why_not` tells."""
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', benchmark)
    tuned(FakeStopwatch(TRITON_IS_FAST))
    x, weight = torch.randn(1, 3, 6, 6), torch.randn(3, 5, 5)
    if passes == FORWARD:
        work = functools.partial(operators.forward, x, weight, None, None)
    else:
        grad = torch.randn(1, 3, 6, 6)
        work = functools.partial(operators.backward, x, grad, weight, None, True)
    expected = work('nchw')
    message = (
        "the backend 'fake' is left out from now on, because its compiler is missing; "
        '.* instead'
    )
    with pytest.warns(RuntimeWarning, match=message) as told:
        found = work(None), work(None)
    torch.testing.assert_close(found, (expected, expected), rtol=1e-4, atol=1e-4)
    assert len(told) == 1
    assert 'fake' not in ops.available_backends()
    assert names() != ['fake']


def test_a_backend_insisted_on_is_an_error_when_it_fails(triton):
    x, weight = torch.randn(1, 3, 6, 6), torch.randn(3, 5, 5)
    with pytest.raises(ValueError, match='because its compiler is missing; choose'):
        ops.depthwise_conv2d(x, weight, backend='fake')


def test_errors_without_a_reason_are_not_hidden(triton, monkeypatch):
    def forward(*arguments):
        raise torch.OutOfMemoryError('full')

    monkeypatch.setattr(triton, 'forward', forward)
    with pytest.raises(torch.OutOfMemoryError, match='full'):
        ops.depthwise_conv2d(torch.randn(1, 3, 6, 6), torch.randn(3, 5, 5))


# --------------------------------------------------------------- from run to run


def test_the_next_process_reads_what_this_one_measured(tuned):
    tuned(FakeStopwatch(TRITON_IS_SLOW))
    names(), names(BOTH)
    watch = tuned(FakeStopwatch(TRITON_IS_FAST))
    assert names() == ['nchw']
    assert names(BOTH) == ['nchw'] * 2
    assert watch.calls == []
    # Another GPU, driver or version is another matter.
    watch = tuned(FakeStopwatch(TRITON_IS_FAST, machine='another'))
    assert names() == ['fake']
    assert len(watch.calls) == 1
    watch = tuned(FakeStopwatch(TRITON_IS_FAST))
    assert names() == ['nchw']


@pytest.mark.parametrize(
    'text',
    [
        '',
        '{"a GPU": ',
        '[1]',
        '{"a GPU": {"p": 3}}',
        '{"a GPU": {"p": {"fake forward": "fast"}}}',
        '{"a GPU": {"p": {"fake forward": NaN}}}',
        '{"a GPU": {"p": {"fake forward": true}}}',
        '[' * 100000,
        '\xff\xfe',
    ],
)
def test_a_corrupt_file_is_ignored_and_replaced(tuned, text):
    tuned.path.parent.mkdir()
    tuned.path.write_bytes(text.encode('latin-1'))
    tuned(FakeStopwatch(TRITON_IS_SLOW))
    with pytest.warns(RuntimeWarning, match='does not hold measured times') as told:
        assert names() == ['nchw']
    assert len(told) == 1
    watch = tuned(FakeStopwatch(TRITON_IS_FAST))
    assert names() == ['nchw']
    assert watch.calls == []


def test_times_that_are_unknown_to_the_file_are_left_alone(tuned):
    """A backend that another process left out is not chosen, nor is it missed."""
    file = tuning_file.TuningFile(tuned.path)
    label = tuning.problem_label(PROBLEM, FORWARD)
    file.add('a GPU', {label: {'torch_fft forward': 2.0, 'gone forward': 1.0}})
    tuned(FakeStopwatch(TRITON_IS_FAST))
    assert names() == ['torch_fft']


def test_a_folder_that_cannot_be_written_to(tuned):
    tuned.path.parent.write_text('no folder')
    watch = tuned(FakeStopwatch(TRITON_IS_SLOW))
    with pytest.warns(RuntimeWarning, match='XDG_CACHE_HOME') as told:
        found = names(), names(BOTH), names()
    assert found == (['nchw'], ['nchw'] * 2, ['nchw'])
    assert len(told) == 1
    assert len(watch.calls) == 2


def test_processes_that_write_at_once_merge(tmp_path):
    path = tmp_path / 'times.json'
    one, two = tuning_file.TuningFile(path), tuning_file.TuningFile(path)
    assert one.read('m') == two.read('m') == {}
    one.add('m', {'p': {'a': 1.0}})
    two.add('m', {'q': {'a': 2.0}})
    two.add('n', {'p': {'a': 3.0}})
    assert one.read('m') == {'p': {'a': 1.0}, 'q': {'a': 2.0}}
    assert one.read('n') == {'p': {'a': 3.0}}
    assert {p.name for p in tmp_path.iterdir()} == {'times.json', 'times.lock'}


def test_a_lock_that_is_never_released_is_not_waited_for(tmp_path, monkeypatch):
    fcntl = pytest.importorskip('fcntl')
    monkeypatch.setattr(tuning_file, '_PATIENCE', 0.0)
    with (tmp_path / 'times.lock').open('w') as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        file = tuning_file.TuningFile(tmp_path / 'times.json')
        file.add('m', {'p': {'a': 1.0}})
        assert file.read('m') == {'p': {'a': 1.0}}


def test_the_file_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning_file, 'MAX_PROBLEMS', 2)
    monkeypatch.setattr(tuning_file, 'MAX_MACHINES', 2)
    file = tuning_file.TuningFile(tmp_path / 'times.json')
    for machine in 'abc':
        for problem in 'pqr':
            file.add(machine, {problem: {'x': 1.0}})
    assert not file.read('a')
    assert list(file.read('c')) == ['q', 'r']


def test_a_process_that_sees_ever_new_sizes_forgets_the_oldest(tuned, monkeypatch):
    monkeypatch.setattr(tuning, 'MAX_PROBLEMS', 3)
    monkeypatch.setattr(choose, '_MAX_FOUND', 2)
    monkeypatch.setattr(choose, '_found', {})
    watch = tuned(FakeStopwatch(TRITON_IS_SLOW))
    problems = [PROBLEM._replace(shape=(2, 8, 16, side)) for side in range(16, 26)]
    for problem in problems:
        assert names(problem=problem) == ['nchw']
    assert [key[1] for key in choose._found] == problems[-2:]
    (known,) = tuning.TUNER._times.values()
    assert [*known] == [tuning.problem_label(p, FORWARD) for p in problems[-3:]]
    # One that is remembered is not timed again.
    assert names(problem=problems[-3]) == ['nchw']
    assert len(watch.calls) == len(problems)


@pytest.mark.parametrize('given', [True, False])
def test_place_of_the_file(monkeypatch, tmp_path, given):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'c') if given else 'relative')
    monkeypatch.setattr('sys.platform', 'linux')
    folder = tmp_path / 'c' if given else tmp_path / 'home' / '.cache'
    assert tuning_file.cache_folder() == folder / 'pelk_mm'


# ------------------------------------------------------------------------ explained


def test_explain_tells_what_was_measured_and_times_nothing(tuned, capsys):
    watch = tuned(FakeStopwatch(TRITON_IS_SLOW))
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 8, 16, 16, device='cuda', memory_format=torch.channels_last)
        weight = torch.empty(8, 5, 5, device='cuda')
    before = ops.explain(x, weight)
    assert 'nchw           forward not timed yet, backward not timed yet\n' in before
    assert watch.calls == []
    names()
    watch.times = {**TRITON_IS_SLOW, 'torch_fft': 2e6}
    names(BOTH)
    told = ops.explain(x, weight).splitlines()
    assert told[1] == (
        '  fake           forward 9e-06 ms measured, backward 1.8e-05 ms measured'
    )
    assert told[4].endswith('backward 4 ms measured')
    assert told[-2] == 'forward: nchw, 3e-06 ms measured'
    assert told[-1] == 'backward: nchw, 6e-06 ms measured'


def test_without_a_gpu_the_model_chooses(monkeypatch, triton):
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert names() == ['fake']
