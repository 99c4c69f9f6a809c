from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pelk_mm.engine import RevertSyncBNHook, sync_bn


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), nn.SyncBatchNorm(4))


@pytest.fixture
def messages(monkeypatch):
    messages = []
    monkeypatch.setattr(sync_bn, 'print_log', lambda text, **_: messages.append(text))
    return messages


def test_without_cuda_sync_bn_becomes_bn_with_one_notice(model, messages, monkeypatch):
    monkeypatch.setattr(sync_bn, 'is_cuda_available', lambda: False)
    parameters = list(model.parameters())
    runner = SimpleNamespace(model=model)
    RevertSyncBNHook().before_run(runner)
    RevertSyncBNHook().before_run(runner)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in runner.model.modules())
    assert all(
        a is b for a, b in zip(parameters, runner.model.parameters(), strict=True)
    )
    assert messages == ['No CUDA device: 2 SyncBN layers run as BN.']
    assert torch.isfinite(runner.model(torch.rand(2, 3, 4, 4))).all()


def test_with_cuda_sync_bn_stays(model, messages, monkeypatch):
    monkeypatch.setattr(sync_bn, 'is_cuda_available', lambda: True)
    RevertSyncBNHook().before_run(SimpleNamespace(model=model))
    assert isinstance(model[1], nn.SyncBatchNorm)
    assert messages == []
