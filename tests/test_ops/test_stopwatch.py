"""The stopwatch that times backends on a GPU; what it runs, runs on the CPU here."""

import pytest
import torch

from pelk_mm.ops import choose, stopwatch
from pelk_mm.ops.backends.base import Backend
from pelk_mm.ops.problem import Problem

PROBLEM = Problem((2, 8, 16, 16), (5, 5), channels_last=True)
FORWARD, BOTH = ('forward',), ('input', 'weight')


@pytest.mark.parametrize('grid', [None, (2, 1, 2)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_made_up_maps_are_the_problems(grid, dtype):
    problem = Problem((2, 3, 6, 7), (5, 5), grid, dtype, channels_last=True)
    state = torch.get_rng_state()
    operands = stopwatch.Operands.of(problem)
    assert torch.equal(torch.get_rng_state(), state)
    assert Problem.of(operands.x, operands.weight, grid) == problem
    backend = choose.BACKENDS['nchw']
    for passes in (FORWARD, ('input',), ('weight',), BOTH):
        found = operands.run(problem, backend, passes)
        assert tuple(found) == passes
        for name, result in found.items():
            like = operands.weight if name == 'weight' else operands.x
            assert result.shape == like.shape


def test_a_candidate_far_behind_is_run_twice_only():
    runs = {'nchw': [], 'torch_fft': [], 'channels_last': []}
    seconds = {'nchw': 2.0, 'torch_fft': 9.0, 'channels_last': 3.0}
    current = []

    def seconds_of(work):
        name = work.args[1].name
        runs[name].append(len(current))
        # The first run of each is to be left out.
        return seconds[name] if len(runs[name]) > 1 else 100.0

    watch = stopwatch.CudaStopwatch(seconds_of)
    candidates = [(choose.BACKENDS[name], FORWARD) for name in runs]
    times = watch.time(PROBLEM, candidates)
    assert {b.name: t / 1e9 for (b, _), t in times.items()} == seconds
    assert [len(r) for r in runs.values()] == [6, 2, 6]


def test_what_a_candidate_raises_is_kept_and_the_others_go_on():
    def seconds_of(work):
        if work.args[1].name == 'nchw':
            raise SyntaxError('of a compiler')
        return 1.0

    candidates = [(choose.BACKENDS[name], FORWARD) for name in ('nchw', 'torch_fft')]
    times = list(stopwatch.CudaStopwatch(seconds_of).time(PROBLEM, candidates).values())
    assert isinstance(times[0], SyntaxError)
    assert times[1] == 1e9


@pytest.mark.parametrize('passes', [FORWARD, ('input',), ('weight',), BOTH])
@pytest.mark.parametrize('factor', [1.0, 1.5, float('nan')])
def test_a_backend_that_computes_wrong_numbers_is_left_out(passes, factor):
    """However fast it is, as kernels may be compiled wrongly on a card."""

    class Other(Backend):
        name = 'other'

        def why_not(self, problem):
            return None

        def forward(self, problem, x, weight, bias):
            out = choose.BACKENDS['nchw'].forward(problem, x, weight, bias)
            out[:, -1] *= factor
            return out

        def dense_gradient(self, problem, x, grad):
            found = choose.BACKENDS['nchw'].dense_gradient(problem, x, grad)
            found[-1] *= factor
            return found

    def seconds_of(work):
        work()
        return 1.0

    problem = Problem((2, 3, 6, 7), (5, 5), (2, 1, 2), torch.bfloat16)
    other = Other(), passes
    candidates = [other, *((choose.BACKENDS[n], passes) for n in ('nchw', 'torch_fft'))]
    times = stopwatch.CudaStopwatch(seconds_of).time(problem, candidates)
    wrong = {each for each, taken in times.items() if isinstance(taken, Exception)}
    assert wrong == (set() if factor == 1 else {other})
    if wrong:
        assert "differ from torch's by " in str(times[other])


def test_a_second_is_a_thousand_of_the_events_milliseconds(monkeypatch):
    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.done = []

        def record(self):
            done.append('record')

        def synchronize(self):
            done.append('wait')

        def elapsed_time(self, end):
            return 4.0

    done = []
    monkeypatch.setattr(torch.cuda, 'Event', Event)
    assert stopwatch.event_seconds(lambda: done.append('work')) == 0.004
    assert done == ['record', 'work', 'record', 'wait']


@pytest.mark.parametrize(('free', 'fits'), [(2**40, True), (2**20, False)])
def test_memory_is_asked_for_before(monkeypatch, free, fits):
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda: (free, 2**41))
    monkeypatch.setattr(torch.cuda, 'memory_reserved', lambda: 0)
    monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda: 0)
    reason = stopwatch.CudaStopwatch().shortage(PROBLEM)
    assert (reason is None) == fits
    assert fits or '1 MiB are free' in reason


def test_machine(monkeypatch):
    assert torch.cuda.is_available() or stopwatch.CudaStopwatch().machine() is None
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'NVIDIA Nothing')
    machine = stopwatch.CudaStopwatch().machine()
    assert machine.startswith('NVIDIA Nothing, driver ')
    assert f'torch {torch.__version__}' in machine
