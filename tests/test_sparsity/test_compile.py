"""Under mmengine's ``compile=True`` the hook's work stays out of the compiled code."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn
from torch._dynamo.utils import counters

from pelk_mm.sparsity import DynamicSparsityHook, prune_and_grow


class Linear(BaseModel):
    """As little as can be sparse: what is compiled is the optimizer."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(3 * 32 * 32, 4, bias=False)

    def forward(self, inputs, label=None, mode='tensor'):
        return dict(loss=self.backbone(torch.stack(inputs).flatten(1)).square().mean())


class Record(Hook):
    """Notes the losses, and how many zeros the hooks after it see."""

    priority = 'VERY_HIGH'

    def __init__(self):
        self.losses, self.zeros = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())
        self.zeros.append(int((runner.model.backbone.weight == 0).sum()))


@pytest.fixture
def train(make_runner):
    """Trains; notes the losses, and how often compiled code broke off or was made."""

    def run(optim_wrapper=None, **settings):
        torch.compiler.reset()
        counters.clear()
        record = Record()
        hook = DynamicSparsityHook(**dict(init='erk', update_interval=2) | settings)
        make_runner(
            hook,
            record,
            model=Linear(),
            iters=6,
            optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
            optim_wrapper=optim_wrapper,
            cfg=dict(compile=dict(backend='eager')),
        ).train()
        compiled = (
            sum(counters['graph_break'].values()),
            counters['stats']['unique_graphs'],
        )
        torch.compiler.reset()
        return hook, record, compiled

    return run


def test_nothing_is_compiled_or_broken_off_for_it(train):
    _, _, without = train(mode='off')
    hook, record, compiled = train()
    assert compiled == without
    assert compiled[1] > 0
    assert hook.steps == 6
    assert record.zeros == [round(0.4 * 4 * 3 * 32 * 32)] * 6


def test_growth_by_gradient_sees_gradients(train, monkeypatch):
    seen = []

    def note(weight, mask, rate, generator, grad):
        seen.append(int(grad.count_nonzero()))
        return prune_and_grow(weight, mask, rate, generator, grad)

    monkeypatch.setattr('pelk_mm.sparsity.hook.prune_and_grow', note)
    hook, record, _ = train(
        growth='gradient', optim_wrapper=dict(accumulative_counts=2), update_interval=1
    )
    assert hook.steps == 3
    assert len(seen) == 2
    assert all(seen)
    assert record.zeros == [round(0.4 * 4 * 3 * 32 * 32)] * 6
