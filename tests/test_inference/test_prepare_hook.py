"""`pelk-mm test --prepare`: the hook and the command line."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS
from torch import nn

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.engine import launch
from pelk_mm.inference.prepare_hook import PrepareForInferenceHook

TOOL = Path(__file__).parents[2] / 'tools' / 'test.py'


def test_tests_run_a_prepared_copy(segmenter):
    runner = SimpleNamespace(model=segmenter.model)
    parameter = next(runner.model.parameters())
    parameter.grad = torch.zeros_like(parameter)  # of a training that goes on
    hook = HOOKS.build(dict(type='PrepareForInferenceHook', dtype='bfloat16'))
    hook.before_test_epoch(runner)
    assert runner.model is not segmenter.model
    assert runner.model.prepared.dtype is torch.bfloat16
    assert not segmenter.model.backbone.deploy
    hook.after_test_epoch(runner, {})
    assert runner.model is segmenter.model
    assert parameter.grad is not None
    parameter.grad = None


def test_it_comes_after_the_average_of_the_weights():
    from mmengine.hooks.hook import Hook
    from mmengine.runner.priority import get_priority

    assert isinstance(PrepareForInferenceHook(), Hook)
    ours, others = PrepareForInferenceHook.priority, EMAHook.priority
    assert get_priority(ours) > get_priority(others)


def test_a_wrapped_model(segmenter, monkeypatch):
    from pelk_mm.inference import prepare_hook

    monkeypatch.setattr(
        prepare_hook, 'is_model_wrapper', lambda model: hasattr(model, 'module')
    )
    wrapper = SimpleNamespace(module=segmenter.model)
    runner = SimpleNamespace(model=wrapper)
    hook = PrepareForInferenceHook()
    hook.before_test_epoch(runner)
    assert type(runner.model).__name__ == 'EncoderDecoder'
    hook.after_test_epoch(runner)
    assert runner.model is wrapper


def test_what_cannot_be_prepared():
    runner = SimpleNamespace(model=nn.Sequential(nn.Conv2d(3, 3, 1)))
    message = 'cannot be prepared: only models with a backbone of this package'
    with pytest.raises(CheckpointError, match=message):
        PrepareForInferenceHook().before_test_epoch(runner)
    assert isinstance(runner.model, nn.Sequential)


@pytest.mark.parametrize(
    ('given', 'handed'),
    [
        (['a.py', 'a.pth', '--tta'], ['a.py', 'a.pth', '--tta']),
        (
            ['--prepare', 'bfloat16', 'a.py', '--cfg-options', 'x=1'],
            ['a.py', '--cfg-options', 'x=1', '--cfg-options']
            + ['default_hooks.prepare_for_inference.type=PrepareForInferenceHook']
            + ['default_hooks.prepare_for_inference.dtype=bfloat16'],
        ),
    ],
)
def test_command_line(monkeypatch, given, handed):
    seen = []
    monkeypatch.setattr('sys.argv', ['test.py', *given])
    monkeypatch.setattr(
        launch, 'hand_over', lambda tool: seen.append((tool, __import__('sys').argv))
    )
    runpy.run_path(str(TOOL), run_name='__main__')
    assert seen == [('test', ['test.py', *handed])]


def test_wrong_data_type(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['test.py', '--prepare', 'float16', 'a.py'])
    with pytest.raises(SystemExit):
        runpy.run_path(str(TOOL), run_name='__main__')
    assert "invalid choice: 'float16'" in capsys.readouterr().err
