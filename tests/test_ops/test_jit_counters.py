"""Counters that trace with torch.jit see our operators."""

import sys
import warnings
from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch import nn

from pelk_mm.ops import depthwise_conv2d, jit_counters, peripheral_conv2d

H, W = 12, 16


class Both(nn.Module):
    """One call of each operator on three channels."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Parameter(torch.rand(3, 7, 5))
        self.shared = nn.Parameter(torch.rand(3, 5, 5))

    def forward(self, x):
        x = depthwise_conv2d(x, self.dense)
        return peripheral_conv2d(x, self.shared, [2, 1, 1, 1, 2])


DENSE, SHARED = H * W * 3 * 7 * 5, H * W * 3 * 5 * 5


@pytest.mark.parametrize('training', [False, True])
def test_mmengine_counts_them(training):
    analysis = pytest.importorskip('mmengine.analysis')
    model, x = Both().train(training), torch.rand(1, 3, H, W)
    flops = analysis.FlopAnalyzer(model, (x,)).by_operator()
    assert flops == {'depthwise_conv2d': DENSE, 'peripheral_conv2d': SHARED}
    activations = analysis.ActivationAnalyzer(model, (x,)).total()
    assert activations == 2 * 3 * H * W


def test_fvcore_counts_them():
    counters = pytest.importorskip('fvcore.nn')
    flops = counters.FlopCountAnalysis(Both(), torch.rand(1, 3, H, W)).by_operator()
    assert flops == {'depthwise_conv2d': DENSE, 'peripheral_conv2d': SHARED}


@pytest.fixture
def counter(tmp_path, monkeypatch):
    """Writes a module with a table, as a package that is imported later has it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        jit_counters.TABLES, 'late_counter', {'TABLE': lambda inputs, outputs: 1}
    )

    def write(text):
        monkeypatch.delitem(sys.modules, 'late_counter', raising=False)
        (tmp_path / 'late_counter.py').write_text(text)
        return import_module('late_counter')

    yield write
    sys.modules.pop('late_counter', None)


def test_tables_are_filled_when_their_module_is_imported(counter):
    module = counter('TABLE = {"aten::mm": None}\n')
    assert set(module.TABLE) == {
        'aten::mm',
        'pelk_mm::depthwise_conv2d',
        'pelk_mm::peripheral_conv2d',
    }


def test_module_without_its_table_warns_and_is_imported(counter):
    with pytest.warns(UserWarning, match='late_counter has no TABLE'):
        assert counter('OTHER = {}\n').OTHER == {}


def test_tables_that_are_loaded_already(monkeypatch):
    module = ModuleType('loaded')
    module.TABLE = {}
    monkeypatch.setitem(sys.modules, 'loaded', module)
    monkeypatch.setattr(jit_counters, 'TABLES', {'loaded': {'TABLE': len}})
    monkeypatch.setattr(sys, 'meta_path', [])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        jit_counters.install()
    assert len(module.TABLE) == 2
