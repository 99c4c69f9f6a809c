import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from pelk_mm.checkpoints import load_weights_only
from pelk_mm.engine import FiniteLossHook, IterationSeedHook
from pelk_mm.engine.finite_loss import NotFiniteError
from pelk_mm.engine.nonfinite import all_finite, first_bad_layer

#: The iteration that goes wrong, one after a checkpoint.
BAD = 3


@pytest.fixture(autouse=True, scope='module')
def _one_thread(one_thread):
    """Small models are faster on one thread."""


class Faulty(nn.Module):
    """Passes on what it gets; from the iteration that goes wrong on, something else."""

    fault = None

    def forward(self, x):
        if self.fault == 'layer':
            return x.exp() * float('inf')
        return x


class Model(BaseModel):
    """A network of named layers that can go wrong in various places."""

    def __init__(self, fault):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Faulty())
        self.head = nn.Linear(4, 2)
        self.fault = fault
        self.active = False

    def forward(self, inputs, data_samples=None, mode='tensor'):
        fault = self.fault if self.active else None
        self.backbone[2].fault = fault
        features = self.backbone(torch.stack(inputs)).mean((2, 3))
        if fault == 'between':
            features = features / 0
        scores = self.head(features)
        if mode != 'loss':
            return scores
        losses = dict(
            loss_cls=scores.square().mean(),
            loss_aux=[scores.abs().mean(), scores.abs().mean()],
            acc=torch.tensor(float('nan')),  # no loss: mmseg's, where all is ignored
        )
        if fault == 'loss':
            losses['loss_cls'] = losses['loss_cls'] * float('nan')
        if fault == 'gradient':
            losses['loss_cls'] = (scores * 0).sum().abs().sqrt()
        return losses


class Data(torch.utils.data.Dataset):
    """Images, the last of which is not finite if told so."""

    def __init__(self, fault):
        self.fault = fault

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = torch.rand(3, 8, 8)
        if self.fault == 'image' and index == 5:
            image[0, 0, 0] = float('inf')
        sample = BaseDataElement(metainfo=dict(img_path=f'images/{index}.png'))
        return dict(inputs=image, data_samples=sample)


class Break(Hook):
    """Starts the fault, and keeps the weights of before it."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == BAD:
            runner.model.active = True
            if runner.model.fault == 'weight':
                runner.model.head.weight.data[0, 0] = float('nan')
        if runner.iter + 1 <= BAD:
            self.before = {n: p.clone() for n, p in runner.model.named_parameters()}


def make_runner(folder, fault, counts=1, save=2, checkpoint='SafeCheckpointHook'):
    torch.manual_seed(0)
    make_runner.count += 1
    optim_wrapper = dict(
        optimizer=dict(type='AdamW', lr=0.01), accumulative_counts=counts
    )
    return Runner(
        model=Model(fault),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=Data(fault),
            batch_size=2,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=False),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
        optim_wrapper=optim_wrapper,
        default_hooks=dict(
            checkpoint=dict(type=checkpoint, by_epoch=False, interval=save)
        ),
        custom_hooks=[FiniteLossHook(), IterationSeedHook(), Break()],
        experiment_name=f'{folder.name}_{make_runner.count}',
        default_scope='mmengine',
        log_level='ERROR',
        randomness=dict(seed=0),
        cfg=dict(optim_wrapper=optim_wrapper),
    )


make_runner.count = 0

CAUSES = {
    'weight': r'loss_cls is nan, .*parameter head\.weight is not finite, the first of '
    '1 of 6',
    'image': r'loss_cls is nan.* the input image is not finite: images/5\.png',
    'layer': r'loss_cls is (inf|nan).* output of backbone\.2 \(Faulty\) is not finite',
    'between': r'loss_cls is (inf|nan).* the input of head \(Linear\) is not finite',
    'loss': r'loss_cls is nan \(loss_aux \d.*\); all parameters and the outputs of all '
    'layers are finite, so it arises in the computation of the losses',
    'gradient': 'the gradients of 6 of 6 parameters are not finite, the first in the '
    r'model is that of backbone\.0\.weight, the last that of head\.bias; all',
}


@pytest.mark.parametrize('fault', CAUSES)
@pytest.mark.parametrize('counts', [1, 2])
def test_training_stops_before_a_weight_changes(tmp_path, fault, counts):
    runner = make_runner(tmp_path, fault, counts)
    # Gradients are looked at where a step is made.
    number = 4 if counts == 2 and fault == 'gradient' else BAD
    match = f'^iteration {number}: .*{CAUSES[fault]}'
    with pytest.raises(NotFiniteError, match=match) as stop:
        runner.train()
    message = str(stop.value)
    assert '\n' not in message
    last = tmp_path / 'iter_2.pth'
    if fault == 'image':
        assert message.endswith(f'made it so, and resume from {last} with --resume')
    else:
        assert 'The learning rate is 0.01. ' in message
        assert f'esume from {last} with clipped gradients: --resume' in message
        assert f'load_from={last} optim_wrapper.optimizer.lr=0.005' in message
    record = next(hook for hook in runner.hooks if isinstance(hook, Break))
    for name, weight in runner.model.named_parameters():
        assert torch.equal(weight.nan_to_num(), record.before[name].nan_to_num())
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_2.pth']
    state = load_weights_only(last)['state_dict']
    assert all(value.isfinite().all() for value in state.values())


def test_what_the_message_says_to_do_works(tmp_path):
    with pytest.raises(NotFiniteError) as stop:
        make_runner(tmp_path, 'loss').train()
    clip, rate = re.findall(r'(optim_wrapper\.\S+)=([\d.]+)', str(stop.value))
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01))))
    cfg.merge_from_dict({clip[0]: float(clip[1]), rate[0]: float(rate[1])})
    assert cfg.optim_wrapper.clip_grad.max_norm == 1
    assert cfg.optim_wrapper.optimizer.lr == 0.005


def test_it_can_be_turned_off(tmp_path):
    runner = make_runner(tmp_path, 'loss')
    next(h for h in runner.hooks if isinstance(h, FiniteLossHook)).enabled = False
    runner.train()
    assert runner.iter == 6
    assert runner.model.head.weight.isnan().any()


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path):
    with pytest.raises(NotFiniteError) as stop:
        make_runner(tmp_path, 'loss', save=10).train()
    assert 'no checkpoint had been saved' in str(stop.value)
    assert '--resume' not in str(stop.value)
    assert 'Start again with a lower learning rate' in str(stop.value)


@pytest.mark.parametrize('hook', ['SafeCheckpointHook', 'CheckpointHook'])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, hook):
    class Spoil(Hook):
        priority = 'LOW'  # after the step, before the checkpoint

        def after_train_iter(self, runner, *args, **kwargs):
            if runner.iter + 1 == 4:
                runner.model.backbone[1].running_var[1] = float('inf')

    runner = make_runner(tmp_path, None, checkpoint=hook)
    runner.register_hook(Spoil())
    match = r'^backbone\.1\.running_var is .* after iteration 4, one of 1 .*iter_2\.pth'
    with pytest.raises(NotFiniteError, match=match):
        runner.train()
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_2.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_2.pth')


def test_a_finite_training_is_left_as_it_is(tmp_path):
    def train(folder, watched):
        runner = make_runner(folder, None)
        if not watched:
            runner.hooks.remove(
                next(h for h in runner.hooks if isinstance(h, FiniteLossHook))
            )
        runner.train()
        assert not runner.model._forward_hooks
        return runner.model.state_dict()

    first, second = (
        train(tmp_path / str(watched), watched) for watched in (False, True)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_steps_that_a_loss_scaler_skips_do_not_stop():
    """A fused optimizer is called with infinite gradients and told to skip."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    runner = SimpleNamespace(
        model=model,
        optim_wrapper=SimpleNamespace(optimizer=optimizer),
        hooks=[],
        iter=0,
        message_hub=SimpleNamespace(runtime_info={}),
        cfg={},
    )
    hook = FiniteLossHook()
    hook.before_train(runner)
    model(torch.ones(1, 2)).sum().backward()
    model.weight.grad[0, 0] = float('inf')
    optimizer.found_inf = torch.ones(())
    optimizer.grad_scale = torch.ones(())
    optimizer.step()
    del optimizer.found_inf, optimizer.grad_scale
    with pytest.raises(NotFiniteError, match='the gradients of 1 of 2'):
        optimizer.step()


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_one_number_among_many_is_found(value):
    tensors = [torch.rand(3), torch.full((2, 2), 3e38), torch.rand(()), torch.rand(0)]
    assert all_finite(tensors)
    assert all_finite([])
    tensors[1][1, 0] = value
    assert not all_finite(tensors)


def test_looking_for_the_layer_changes_nothing():
    model = Model('layer').train()
    model.active = True
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = first_bad_layer(model, (list(torch.rand(2, 3, 8, 8)),), dict(mode='loss'))
    assert found == 'the output of backbone.2 (Faulty) is not finite'
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
