import json
import math

import numpy as np
import pytest

from pelk_mm.analysis import throughput
from pelk_mm.analysis.engines import Setting
from pelk_mm.analysis.subjects import Subject, UnavailableError
from pelk_mm.analysis.workers import Ready

SETTING = Setting((64, 96), batch=2)
OURS = Subject('ours', 'ours.py')
SWIN = Subject('swin_tiny', 'ours.py', competitor='swin_tiny')
OUTPUT = np.array([[1.0, -4.0]], np.float32)


class FakeWorker:
    """A form whose results and times are given beforehand."""

    def __init__(self, form, log, seconds=(1.0,), outputs=OUTPUT, memory=2**20):
        self.name, self.log = f'{form.subject.name} {form.engine}', log
        self.seconds, self.outputs, self.memory = iter(seconds), outputs, memory
        self.folder = form.folder

    def export(self):
        assert self.folder.is_dir()
        self.log.append(f'{self.name} export')

    def prepare(self):
        self.log.append(f'{self.name} prepare')
        if isinstance(self.outputs, Exception):
            raise self.outputs
        return Ready([self.outputs], 3.0)

    def run(self):
        self.log.append(f'{self.name} run')
        found = next(self.seconds)
        if isinstance(found, Exception):
            raise found
        return found

    def peak_memory(self):
        return self.memory

    def close(self):
        self.log.append(f'{self.name} close')


@pytest.fixture
def measure(monkeypatch):
    """Measures with fake workers of these settings by engine; returns rows and log."""
    monkeypatch.setattr(throughput, 'why_not_installed', lambda engine: None)

    def run(workers, engines=(), subjects=(OURS,), setting=SETTING, **options):
        log, said = [], []

        def open_worker(form):
            given = workers.get(form.engine, workers.get(form.subject.name, {}))
            return FakeWorker(form, log, **given)

        try:
            rows = throughput.measure(
                subjects, engines, setting, open_worker, say=said.append, **options
            )
        finally:
            run.log, run.said = log, said
        return rows

    return run


def test_figures_of_a_fake_clock(measure):
    quick = [100.0, *(k / 1000 for k in range(1, 22))]
    rows = measure(
        dict(eager=dict(seconds=[9.0] * 22), deployed=dict(seconds=quick)),
        engines=['deployed'],
        turns=21,
    )
    eager, deployed = rows
    assert eager.seconds == [9.0] * 21  # the first of each does not count
    assert (deployed.median, deployed.percentile_95) == (0.011, 0.020)
    assert deployed.difference == 0
    assert deployed.memory == 2**20
    table = throughput.markdown(rows, batch=2).splitlines()
    assert table[0].startswith('| model | form | difference | images/s | ratio |')
    assert table[2] == '| ours | eager |  | 0.2222 | 1.00 | 9000 | 9000 | 1 |'
    assert table[3] == '| ours | deployed | 0.0e+00 | 181.8 | 818.18 | 11 | 20 | 1 |'
    found = throughput.results(rows, batch=2)
    assert found[1]['images_per_second'] == 2 / 0.011
    json.dumps(found)


def test_forms_take_turns_after_all_are_right(measure):
    ones = dict(seconds=[1.0] * 9)
    measure(
        dict(eager=ones, deployed=ones, onnxruntime=ones),
        engines=['onnxruntime', 'deployed'],
        turns=2,
    )
    names = [f'ours {engine}' for engine in ('eager', 'deployed', 'onnxruntime')]
    assert measure.log[:5] == [
        'ours eager prepare',
        'ours deployed prepare',
        'ours onnxruntime export',
        'ours onnxruntime close',  # the exporter's memory is not the form's
        'ours onnxruntime prepare',
    ]
    runs = measure.log[5:14]
    for turn in range(3):
        assert sorted(runs[3 * turn : 3 * turn + 3]) == sorted(
            f'{n} run' for n in names
        )
    assert sorted(measure.log[14:]) == sorted(f'{name} close' for name in names)
    told = measure.said.index('  differs from eager by 0.0e+00 at most')
    assert told < measure.said.index('3 forms in turns, 2 times or more')


@pytest.mark.parametrize(
    ('outputs', 'message'),
    [
        (OUTPUT * 1.01, 'differ from those of eager by 1.0e-02 of the largest'),
        (OUTPUT * math.nan, 'outputs are not finite'),
        (OUTPUT[:, :1], 'outputs have the shapes [(1, 1)] instead of [(1, 2)]'),
    ],
)
def test_wrong_results_are_not_timed(measure, outputs, message):
    rows = measure(
        dict(eager=dict(seconds=[1.0] * 9), deployed=dict(outputs=outputs)),
        engines=['deployed'],
        turns=2,
    )
    assert message in rows[1].problem
    assert rows[1].seconds == []
    assert 'ours deployed run' not in measure.log
    assert 'ours deployed close' in measure.log
    assert message in throughput.markdown(rows, 1).splitlines()[-1].split('|')[-2]


def test_rounding_of_autocast_is_none_of_them(measure):
    workers = dict(
        eager=dict(seconds=[1.0] * 9),
        deployed=dict(seconds=[1.0] * 9, outputs=OUTPUT * 1.01),
    )
    setting = Setting((64, 96), amp=True)
    rows = measure(workers, ['deployed'], setting=setting, turns=2)
    assert rows[1].problem is None
    assert rows[1].difference == pytest.approx(0.01, rel=1e-4)


def test_what_fails_leaves_the_others(measure):
    rows = measure(
        dict(
            eager=dict(seconds=[1.0] * 9),
            deployed=dict(outputs=RuntimeError('no kernel\nat all')),
            compiled=dict(seconds=[1.0, MemoryError()]),
            openvino=dict(seconds=[1.0, 1.0, UnavailableError('it | is gone')]),
        ),
        engines=['deployed', 'compiled', 'openvino'],
        turns=3,
    )
    assert [row.problem for row in rows] == [
        None,
        'RuntimeError: no kernel',
        'out of memory',
        'it | is gone',
    ]
    assert len(rows[0].seconds) == 3
    assert rows[3].seconds == []
    lines = throughput.markdown(rows, 1).splitlines()
    assert lines[-1].endswith('| it \\| is gone |')
    assert len({line.replace('\\|', '').count('|') for line in lines}) == 1
    assert sum(entry.endswith('close') for entry in measure.log) == 5


def test_packages_that_are_missing(measure, monkeypatch):
    reasons = dict(openvino='openvino is not installed')
    monkeypatch.setattr(throughput, 'why_not_installed', reasons.get)
    rows = measure(dict(eager=dict(seconds=[1.0] * 9)), ['openvino'], turns=1)
    assert rows[1].problem == 'openvino is not installed'
    assert not any('openvino' in entry for entry in measure.log)


def test_competitors(measure):
    rows = measure(
        dict(eager=dict(seconds=[2.0] * 9), deployed=dict(seconds=[1.0] * 9)),
        engines=['deployed'],
        subjects=(OURS, SWIN),
        turns=1,
    )
    assert [(row.model, row.engine) for row in rows] == [
        ('ours', 'eager'),
        ('ours', 'deployed'),
        ('swin_tiny', 'eager'),
    ]


def test_a_competitor_that_is_missing_is_told_once():
    log, missing = [], UnavailableError('mmpretrain is not installed')
    other = Subject('other', 'other.py')

    def open_worker(form):
        given = dict(seconds=[2.0 if form.subject is OURS else 1.0] * 9)
        if form.subject is SWIN:
            given = dict(outputs=missing)
        return FakeWorker(form, log, **given)

    subjects = (OURS, SWIN, other)
    rows = throughput.measure(subjects, ['compiled'], SETTING, open_worker, turns=1)
    assert [(row.model, row.problem, row.seconds) for row in rows] == [
        ('ours', None, [2.0]),
        ('ours', None, [2.0]),
        ('swin_tiny', 'mmpretrain is not installed', []),
        ('other', None, [1.0]),
        ('other', None, [1.0]),
    ]


def test_ratios_without_eager(measure):
    rows = measure(
        dict(
            eager=dict(outputs=MemoryError()),
            deployed=dict(seconds=[2.0] * 9),
            compiled=dict(seconds=[1.0] * 9),
        ),
        engines=['deployed', 'compiled'],
        turns=1,
    )
    assert rows[1].difference is None
    text = throughput.report(rows, SETTING, OURS, {'processor': 'abacus'})
    assert '| ours | compiled |  | 2 | 2.00 | 1000 |' in text
    assert 'over those of ours, deployed.' in text
    assert '# whole model, 2 x 3 x 64 x 96, float32, random weights\n' in text
    assert '# processor: abacus\n' in text


@pytest.mark.parametrize(
    'seconds', [None, [RuntimeError('full')], [1.0, RuntimeError('full')]]
)
def test_nothing_measured(measure, seconds):
    eager = dict(outputs=RuntimeError('full')) if seconds is None else {}
    with pytest.raises(throughput.NothingMeasuredError, match='ours, eager: .*full'):
        measure(dict(eager=eager or dict(seconds=seconds)), turns=2)
    assert measure.log[-1] == 'ours eager close'


@pytest.mark.parametrize(
    ('setting', 'words'),
    [
        (Setting((64, 64), amp=True), 'autocast to bfloat16'),
        (Setting((64, 64), device='cuda', amp=True), 'autocast to float16'),
        (Setting((64, 64), channels_last=True), 'float32, channels_last'),
        (Setting((64, 64), as_trained=True), 'compiled and exported as trained'),
    ],
)
def test_what_is_computed(setting, words):
    subject = Subject('ours', 'ours.py', 'backbone', checkpoint='best.pth')
    text = throughput.describe_setting(setting, subject)
    assert words in text
    assert text.startswith('backbone and neck, if any, 1 x 3 x 64 x 64')
    assert text.endswith('best.pth')


@pytest.mark.parametrize(('has', 'notes'), [(False, 1), (None, 0), (True, 0)])
def test_caveat_of_bfloat16(monkeypatch, has, notes):
    monkeypatch.setattr(throughput, 'multiplies_bfloat16', lambda: has)
    setting = Setting((64, 64), amp=True, threads=2)
    cfg = dict(default_scope='mmseg')
    assert len(list(throughput.caveats(setting, OURS, cfg))) == notes


def test_caveat_of_random_detectors():
    cfg = dict(default_scope='mmdet')
    setting = Setting((64, 64), threads=2)
    (note,) = throughput.caveats(setting, OURS, cfg)
    assert 'random weights find few objects' in note
    backbone = Subject('ours', 'ours.py', 'backbone')
    assert list(throughput.caveats(setting, backbone, cfg)) == []


def test_caveat_of_one_thread():
    cfg = dict(default_scope='mmseg')
    (note,) = throughput.caveats(Setting((64, 64), threads=1), OURS, cfg)
    assert 'other programs do not count' in note
