import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import benchmark
from pelk_mm.analysis import engines
from pelk_mm.analysis.engines import (
    ENGINES,
    Setting,
    first_image,
    require_static,
    versions,
    why_not_installed,
)
from pelk_mm.analysis.subjects import Predictions, Subject, UnavailableError

from .narrow_configs import ARCHS, write_narrow


@pytest.fixture(autouse=True, scope='module')
def _one_thread(one_thread):
    """For all tests of this file."""


@pytest.fixture
def compute(tmp_path):
    """Computes a narrow model in a form; returns the form and its outputs."""

    def run(engine, kind='PeLK', part='backbone', options=None, **settings):
        settings = {'shape': (64, 96), **settings}
        subject = Subject('ours', write_narrow(tmp_path, kind), part, options or {})
        form = ENGINES[engine](subject, Setting(**settings), tmp_path)
        if form.exported:
            form.export()
        form.load()
        return form, first_image(form.infer())

    return run


def assert_close(outputs, expected, bound=1e-5):
    assert len(outputs) == len(expected)
    for output, right in zip(outputs, expected, strict=True):
        assert output.shape == right.shape
        assert np.abs(output - right).max() <= bound * np.abs(right).max()


@pytest.mark.parametrize('kind', ARCHS)
def test_deployed(compute, kind):
    eager, expected = compute('eager', kind, batch=2)
    form, outputs = compute('deployed', kind, batch=2)
    assert {len(each) for each in outputs} == {1}
    assert_close(outputs, expected)
    assert form.call.backbone.deploy
    assert not eager.call.backbone.deploy
    assert len(list(form.call.modules())) < len(list(eager.call.modules()))
    assert not any(each.requires_grad for each in form.call.parameters())


@pytest.mark.parametrize('kind', ARCHS)
@pytest.mark.parametrize('part', ['backbone', 'whole'])
def test_prepared(compute, kind, part):
    _, expected = compute('eager', kind, part)
    form, outputs = compute('prepared', kind, part)
    assert_close(outputs, expected)
    assert form.call.backbone.prepared == (torch.float32, False)
    form, outputs = compute('prepared', kind, part, amp=True)
    assert form.call.backbone.prepared == (torch.bfloat16, False)
    assert_close(outputs, expected, 0.1)
    with pytest.raises(AssertionError):
        assert_close(outputs, expected)


def test_only_ours_are_prepared(compute, monkeypatch):
    module = nn.Module()
    module.backbone = nn.Conv2d(3, 3, 1)
    monkeypatch.setattr(Subject, 'build', lambda subject: module)
    with pytest.raises(UnavailableError, match='Conv2d is no backbone of this package'):
        compute('prepared')


@pytest.mark.parametrize('kind', ARCHS)
def test_plain(compute, kind):
    """A rival without any operator of ours."""
    form, outputs = compute('plain', kind)
    assert_close(outputs, compute('eager', kind)[1])
    with torch.profiler.profile() as profile:
        form.infer()
    names = {event.key for event in profile.key_averages()}
    assert not {name for name in names if name.startswith('pelk_mm')}
    assert any(name.endswith('convolution') for name in names)


def test_box_sums_where_there_are_some(tmp_path):
    module = Subject('ours', write_narrow(tmp_path, 'SLaK'), 'backbone').build()
    with pytest.raises(UnavailableError, match='no convolution that box sums could'):
        engines.torch_module(module, factored=True)
    module = Subject('ours', write_narrow(tmp_path, wide=True), 'backbone').build()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = first_image(module(images))
        assert_close(
            first_image(engines.torch_module(module, True)(images)), expected, 1e-4
        )
    assert any('Factored' in type(each).__name__ for each in module.modules())


def test_layout_and_autocast(compute):
    _, expected = compute('eager', part='whole')
    form, outputs = compute('eager', part='whole', channels_last=True, amp=True)
    assert form.images.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        raw = form.infer()
    assert raw.dtype is torch.bfloat16
    assert outputs[0].dtype == np.float32
    assert_close(outputs, expected, 0.1)
    assert np.abs(outputs[0] - expected[0]).max() > 0


@pytest.mark.slow  # exports
def test_onnxruntime(compute):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    form, outputs = compute('onnxruntime', part='whole')
    assert_close(outputs, compute('eager', part='whole')[1])
    assert form.path.is_file()
    assert versions(['eager', 'onnxruntime']).keys() == {'onnxruntime'}


@pytest.mark.slow
def test_openvino(compute):
    pytest.importorskip('openvino')
    form, outputs = compute('openvino', part='whole')
    assert_close(outputs, compute('eager', part='whole')[1], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ARCHS)
@pytest.mark.parametrize('form', ['compiled', 'prepared_compiled', 'plain_compiled'])
def test_compiled(compute, kind, form):
    _, outputs = compute(form, kind)
    assert_close(outputs, compute('eager', kind)[1], 1e-4)


def test_exported_forms_are_deployed_unless_asked(compute, tmp_path):
    subject = Subject('ours', write_narrow(tmp_path), 'backbone')
    for as_trained in (False, True):
        setting = Setting((64, 64), as_trained=as_trained)
        module = ENGINES['onnxruntime'].module(
            SimpleNamespace(subject=subject, setting=setting, deployed='yes')
        )
        assert module.backbone.deploy is not as_trained


@pytest.mark.parametrize(
    ('kind', 'options', 'message'),
    [
        ('PeLK', {'model.backbone.deploy': True}, 'asks for this form already'),
        (None, {}, 'Conv2d has no deployment form'),
    ],
)
def test_deployed_already_or_never(
    compute, monkeypatch, kind, options, message, tmp_path
):
    if kind is None:
        module = nn.Module()
        module.backbone = nn.Conv2d(3, 3, 1)
        monkeypatch.setattr(Subject, 'build', lambda subject: module)
    with pytest.raises(UnavailableError, match=message):
        compute('deployed', options=options)
    if kind is not None:  # compiled as it is
        setting = Setting((64, 64))
        subject = Subject('ours', write_narrow(tmp_path), 'backbone', options)
        form = ENGINES['compiled'](subject, setting, tmp_path)
        assert super(type(form), form).module().backbone.deploy


def test_detectors_with_predictions_are_not_compiled():
    with pytest.raises(UnavailableError, match='--part backbone'):
        require_static(Predictions(nn.Identity()))
    module = nn.Identity()
    assert require_static(module) is module


def test_runtime_without_cuda(monkeypatch, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    monkeypatch.setattr(
        runtime, 'get_available_providers', lambda: ['CPUExecutionProvider']
    )
    setting = Setting((64, 64), device='cuda')
    subject = Subject('ours', 'ours.py')
    with pytest.raises(UnavailableError, match='no CUDAExecutionProvider here'):
        ENGINES['onnxruntime'](subject, setting, tmp_path)
    with pytest.raises(UnavailableError, match='does not compute on cuda'):
        ENGINES['openvino'](subject, setting, tmp_path)


class Core:
    """What stands in for OpenVINO on a processor with some capabilities."""

    capabilities = ('FP32',)

    def get_property(self, device, name):
        assert (device, name) == ('CPU', 'OPTIMIZATION_CAPABILITIES')
        return self.capabilities

    def compile_model(self, path, device, options):
        self.compiled = (path.name, device, options)
        return self

    def create_infer_request(self):
        return self

    def infer(self, inputs, **options):
        return {0: inputs[0] + 1}


def test_precision_of_openvino_is_what_was_asked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'openvino', SimpleNamespace(Core=Core))
    subject = Subject('ours', 'ours.py')
    form = ENGINES['openvino'](subject, Setting((8, 8), threads=3), tmp_path)
    form.load()
    assert form.core.compiled == (
        'model.xml',
        'CPU',
        dict(INFERENCE_NUM_THREADS=3, NUM_STREAMS=1, INFERENCE_PRECISION_HINT='f32'),
    )
    (output,) = first_image(form.infer())
    np.testing.assert_array_equal(output, form.array() + 1)
    amp = Setting((8, 8), amp=True)
    with pytest.raises(UnavailableError, match='no bfloat16 on this processor'):
        ENGINES['openvino'](subject, amp, tmp_path)
    monkeypatch.setattr(Core, 'capabilities', ('FP32', 'BF16'))
    form = ENGINES['openvino'](subject, amp, tmp_path)
    form.load()
    assert form.core.compiled[2]['INFERENCE_PRECISION_HINT'] == 'bf16'


def test_the_tool_knows_every_form():
    assert {*benchmark.ENGINES, *benchmark.OTHER_ENGINES} == ENGINES.keys()
    assert set(engines.OURS) < ENGINES.keys()


def test_missing_packages(monkeypatch):
    monkeypatch.setattr(engines, 'find_spec', lambda name: None)
    assert why_not_installed('eager') is None
    assert why_not_installed('openvino') == (
        'openvino is not installed; `pip install openvino`'
    )
    assert why_not_installed('onnxruntime') == (
        'onnxruntime and onnx and onnxscript are not installed; '
        '`pip install onnxruntime onnx onnxscript`'
    )
    assert versions(ENGINES) == {}


def test_images_are_the_same_in_every_process():
    setting = Setting((4, 6), batch=2)
    torch.manual_seed(1)
    one = setting.images(5)
    torch.manual_seed(2)
    assert torch.equal(one, setting.images(5))
    assert one.shape == (2, 5, 4, 6)
