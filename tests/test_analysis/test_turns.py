import torch

from pelk_mm.analysis import machine, turns
from pelk_mm.ops import stopwatch


def test_wall_clock(monkeypatch):
    now = iter([2.0, 5.0])
    monkeypatch.setattr('time.perf_counter', lambda: next(now))
    assert turns.timer_for('cpu') is turns.wall_seconds
    assert turns.wall_seconds(list) == 3.0


def test_cuda_by_events_of_the_stream(monkeypatch):
    assert turns.timer_for('cuda') is stopwatch.event_seconds
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append('record')

        def synchronize(self):
            log.append('wait')

        def elapsed_time(self, end):
            return 7.0  # milliseconds

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    assert turns.timer_for('cuda')(lambda: log.append('work')) == 0.007
    assert log == ['record', 'work', 'record', 'wait']


def test_work_on_another_stream_is_waited_for(monkeypatch):
    log, now = [], iter([2.0, 5.0])
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: log.append('wait'))
    monkeypatch.setattr('time.perf_counter', lambda: log.append('clock') or next(now))
    timer = turns.timer_for('cuda', own_stream=True)
    assert timer(lambda: log.append('work')) == 3.0
    assert log == ['wait', 'clock', 'work', 'wait', 'clock']


def test_processor_without_a_name(monkeypatch):
    monkeypatch.setattr(machine, 'cpu_fields', dict)
    assert machine.processor()
    monkeypatch.setattr(machine, 'cpu_fields', lambda: {'model': '7'})
    assert machine.processor().endswith(', model 7')


def test_load_where_there_is_none(monkeypatch):
    def none():
        raise OSError

    assert float(machine.load()) >= 0
    monkeypatch.setattr('os.getloadavg', none)
    assert machine.load() == 'unknown'
