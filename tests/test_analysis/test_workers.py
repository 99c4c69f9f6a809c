import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pelk_mm.analysis import workers
from pelk_mm.analysis.engines import ENGINES, Setting, TorchForm
from pelk_mm.analysis.subjects import Subject, UnavailableError

MIB = 2**20


def form(engine='eager', device='cpu', **options):
    setting = Setting((64, 64), device=device, threads=torch.get_num_threads())
    return workers.Form(Subject('ours', 'ours.py', **options), engine, setting, None)


@pytest.fixture
def engine(monkeypatch):
    """Replaces the eager form by one that computes nothing; returns its class."""

    class Fake(TorchForm):
        log = []

        def __init__(self, *arguments):
            self.log.append('create')

        def load(self):
            self.log.append('load')

        def infer(self):
            self.log.append('infer')
            return torch.arange(6.0).view(2, 3)

    monkeypatch.setitem(ENGINES, 'eager', Fake)
    return Fake


def test_a_form_is_loaded_run_and_timed(engine):
    def timer(work):
        work()
        return 4.0

    worker = workers.LocalWorker(form(), timer=timer)
    ready = worker.prepare()
    assert engine.log == ['create', 'load', 'infer']
    np.testing.assert_array_equal(ready.outputs, [[[0.0, 1.0, 2.0]]])  # image 0
    assert ready.seconds > 0
    assert worker.run() == 4.0
    assert engine.log[3:] == ['infer']
    assert worker.peak_memory() is None  # other forms are in this process
    worker.close()


linux = pytest.mark.skipif(
    not os.access('/proc/self/clear_refs', os.W_OK), reason='the system tells no peak'
)


@linux
def test_memory_of_a_process():
    memory = workers.ResidentMemory()
    held = np.ones(64 * MIB, np.uint8)
    passing = np.ones(512 * MIB, np.uint8)
    del passing
    memory.restart()
    assert 56 * MIB < memory.peak() < 256 * MIB  # it is over
    passing = np.ones(96 * MIB, np.uint8)
    del passing
    assert 152 * MIB < memory.peak() < 352 * MIB
    assert held[0] == 1


def test_memory_where_the_system_tells_none(monkeypatch):
    memory = workers.ResidentMemory()
    assert memory.peak() is None  # the peak was not reset, so it is not known
    monkeypatch.setattr(
        workers.Path, 'read_text', lambda path: (_ for _ in ()).throw(OSError())
    )
    memory = workers.ResidentMemory()
    memory.resets = True
    assert memory.peak() is None


def test_memory_on_cuda(monkeypatch):
    held = SimpleNamespace(now=100, peak=900)
    monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda: held.now)
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: held.peak)
    monkeypatch.setattr(
        torch.cuda,
        'reset_peak_memory_stats',
        lambda: setattr(held, 'peak', held.now),
    )
    memory = workers.CudaMemory()
    held.now = 300
    memory.restart()
    assert memory.peak() == 200
    held.peak = 700
    assert memory.peak() == 600


@pytest.mark.parametrize(
    ('engine', 'device', 'alone', 'kind'),
    [
        ('eager', 'cpu', True, workers.ResidentMemory),
        ('onnxruntime', 'cpu', True, workers.ResidentMemory),
        ('eager', 'cpu', False, workers.UnknownMemory),
        ('compiled', 'cuda', False, workers.CudaMemory),
        ('onnxruntime', 'cuda', True, workers.UnknownMemory),
    ],
)
def test_who_counts_memory(monkeypatch, engine, device, alone, kind):
    monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda: 0)
    assert type(workers.memory_for(form(engine, device), alone)) is kind


def test_forms_on_cuda_are_timed_there():
    timers = {
        engine: workers.LocalWorker(form(engine, 'cuda')).timer.__name__
        for engine in ENGINES
    }
    assert timers['eager'] == timers['compiled'] == 'event_seconds'
    assert timers['onnxruntime'] == 'synchronised_seconds'


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (MemoryError(), 'out of memory'),
        (torch.OutOfMemoryError('CUDA out of memory. Tried'), 'out of memory'),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 'out of memory'),
        (RuntimeError('first\nsecond'), 'RuntimeError: first'),
        (UnavailableError('a sentence'), 'a sentence'),
        (KeyError(), 'KeyError: KeyError'),
    ],
)
def test_reasons(error, reason):
    assert workers.explain(error) == reason


@pytest.mark.parametrize(
    ('code', 'reason'),
    [
        (-signal.SIGKILL, 'out of memory: the system killed its process'),
        (-signal.SIGSEGV, 'its process ended by SIGSEGV'),
        (3, 'its process ended with exit code 3'),
    ],
)
def test_reasons_of_processes(code, reason):
    assert workers._explain_end(code) == reason


def test_requests_of_another_process(engine, monkeypatch):
    monkeypatch.setattr(signal, 'signal', lambda *arguments: None)
    monkeypatch.setattr(os, 'dup2', lambda *arguments: None)
    requests, replies = iter(['prepare', 'run', 'peak_memory', 'export']), []

    def recv():
        for request in requests:
            return request
        raise EOFError

    workers.serve(SimpleNamespace(recv=recv, send=replies.append), form())
    assert replies[0].outputs[0].shape == (1, 3)
    assert replies[1] > 0
    assert isinstance(replies[3], UnavailableError)  # of a form that has no files
    assert 'export' in str(replies[3])


def test_another_process_that_ends(monkeypatch):
    class Process:
        exitcode = -signal.SIGKILL

        def __init__(self, target, args):
            self.alive = True

        def start(self):
            self.args = None

        def join(self, timeout=None):
            self.alive = timeout is not None and self.alive

        def is_alive(self):
            return self.alive

        def kill(self):
            self.alive = False

        def close(self):
            assert not self.alive

    context = SimpleNamespace(Pipe=os_pipe, Process=Process)
    monkeypatch.setattr(workers.multiprocessing, 'get_context', lambda kind: context)
    worker = workers.ProcessWorker(form())
    with pytest.raises(UnavailableError, match='system killed its process'):
        worker.prepare()
    worker.close()


def os_pipe():
    import multiprocessing

    return multiprocessing.Pipe()


@pytest.mark.slow  # imports everything anew
def test_a_process_of_its_own(tmp_path):
    worker = workers.ProcessWorker(form())
    with pytest.raises(UnavailableError, match=r'config ours\.py does not exist'):
        worker.prepare()
    os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(UnavailableError, match='system killed its process'):
        worker.run()
    worker.close()
