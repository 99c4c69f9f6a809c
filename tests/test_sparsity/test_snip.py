import random
import re

import numpy as np
import pytest
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.hooks import Hook
from mmengine.runner import set_random_seed
from torch import nn

from pelk_mm.sparsity import DynamicSparsityHook, select_parameters, snip_scores
from pelk_mm.sparsity.snip import NoScoresError


def prepared(runner):
    """What `Runner.train` does before the hooks, up to the loop."""
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    return runner


def generators():
    return (
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
    )


def test_scores_are_weight_times_gradient(make_runner):
    runner = prepared(make_runner())
    model = runner.model
    params = select_parameters(model)
    scores = snip_scores(runner, params, seed=5)
    assert list(scores) == list(params)

    set_random_seed(5)
    batch = next(iter(runner.build_dataloader(runner._train_dataloader, seed=5)))
    images, labels = torch.stack(batch['inputs']), torch.stack(batch['label'])
    model.train()
    model(images, labels, mode='loss')['loss_cls'].backward()
    for name, param in params.items():
        assert torch.equal(scores[name], (param * param.grad).abs())
        assert scores[name].any()


def test_everything_is_left_as_it_was(make_runner):
    runner = prepared(make_runner())
    model = runner.model.eval()
    model.head.train()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = generators()
    snip_scores(runner, select_parameters(model), seed=5)
    assert generators() == before
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert not model.backbone.training
    assert model.head.training
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(p.grad is None for p in model.backbone.parameters())


def test_the_data_order_is_left_as_it_was(make_runner):
    touched, untouched = prepared(make_runner()), prepared(make_runner())
    snip_scores(touched, select_parameters(touched.model), seed=5)
    set_random_seed(0)
    batch = next(touched.train_loop.dataloader_iterator)
    set_random_seed(0)
    expected = next(untouched.train_loop.dataloader_iterator)
    assert batch['label'] == expected['label']
    assert torch.equal(
        torch.stack([*batch['inputs']]), torch.stack([*expected['inputs']])
    )


def test_recomputed_activations_give_the_same_scores(make_runner, classifier):
    scores = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        runner = prepared(make_runner(model=classifier(with_cp=with_cp)))
        scores.append(snip_scores(runner, select_parameters(runner.model), seed=5))
    for name, score in scores[0].items():
        assert torch.equal(score, scores[1][name])


def test_a_train_step_of_its_own(make_runner, classifier):
    """A model that updates its parts by the optimizer wrappers of each."""

    class Parts(classifier):
        def train_step(self, data, optim_wrapper):
            data = self.data_preprocessor(data, True)
            for name in ('head', 'backbone'):
                with optim_wrapper[name].optim_context(self):
                    loss, _ = self.parse_losses(self(**data, mode='loss'))
                optim_wrapper[name].update_params(loss)

    runner = prepared(make_runner(model=Parts()))
    for module in runner.model.modules():  # twice the same loss
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
    params = select_parameters(runner.model)
    twice = snip_scores(runner, params, seed=5)
    Parts.train_step = classifier.train_step
    once = snip_scores(runner, params, seed=5)
    for name, score in once.items():
        torch.testing.assert_close(twice[name], 2 * score)


def test_a_compiled_train_step_is_left_alone(make_runner):
    runner = prepared(make_runner())
    params = select_parameters(runner.model)
    scores = snip_scores(runner, params, seed=5)
    # Where mmengine's `compile=True` puts the compiled one.
    runner.model.train_step = None
    for name, score in snip_scores(runner, params, seed=5).items():
        assert torch.equal(score, scores[name])


def spoil_loss(runner, monkeypatch):
    runner.model.head.bias.data.fill_(float('nan'))


def spoil_gradients(runner, monkeypatch):
    kind = type(runner.model)

    def forward(self, inputs, label=None, mode='tensor', forward=kind.forward):
        losses = forward(self, inputs, label, mode)
        weight = next(iter(select_parameters(self).values()))
        # The slope of a square root at 0 is infinite.
        return losses | dict(loss_root=(weight - weight.detach()).sum().sqrt())

    monkeypatch.setattr(kind, 'forward', forward)


def ignore_labels(runner, monkeypatch):
    runner.train_dataloader.dataset.labels.fill_(-100)


def forget_weights(runner, monkeypatch):
    for param in select_parameters(runner.model).values():
        param.data.zero_()


def detach_loss(runner, monkeypatch):
    def forward(self, inputs, label=None, mode='tensor'):
        return dict(loss=torch.ones(()))

    monkeypatch.setattr(type(runner.model), 'forward', forward)


SPOILT = [
    (spoil_loss, 'the loss of its batch is nan'),
    (spoil_gradients, 'gradients of its batch are not finite'),
    (ignore_labels, r'no weight has any influence.*\(all labels may be ignored\)'),
    (forget_weights, 'no weight has any influence'),
    (detach_loss, 'no weight has any influence'),
]


@pytest.mark.parametrize(('spoil', 'reason'), SPOILT)
def test_a_batch_without_scores(make_runner, monkeypatch, spoil, reason):
    runner = prepared(make_runner())
    spoil(runner, monkeypatch)
    with pytest.raises(NoScoresError, match=reason):
        snip_scores(runner, select_parameters(runner.model), seed=5)


@pytest.mark.parametrize(('spoil', 'reason'), SPOILT[:3:2])
def test_layers_without_scores_get_their_density_by_erk(
    make_runner, tmp_path, monkeypatch, spoil, reason
):
    class Spoil(Hook):
        """As a data set or a checkpoint might."""

        def before_train(self, runner):
            spoil(runner, monkeypatch)

    masks = {}
    for init in ('snip', 'erk'):
        hook = DynamicSparsityHook(init=init)
        make_runner(Spoil(), hook, iters=1).train()
        masks[init] = hook.masks
    assert masks['snip'].checksum() == masks['erk'].checksum()
    text = '\n'.join(path.read_text() for path in tmp_path.glob('*/*.log'))
    assert re.search(
        f"WARNING .*init='snip' has no scores, since {reason}.*'erk'", text
    )
    assert text.count('has no scores') == 1


def test_norms_that_refuse_the_batch_would_refuse_the_trainings(make_runner):
    runner = prepared(make_runner(batch_size=1))
    with pytest.raises(ValueError, match=r'Expected more than 1 value') as refused:
        snip_scores(runner, select_parameters(runner.model), seed=5)
    message = str(refused.value)
    assert 'would refuse the same in the training, with sparsity or without' in message
    assert 'train_dataloader.batch_size' in message
    with pytest.raises(ValueError, match=r'Expected more than 1 value'):
        make_runner(batch_size=1).train()


def test_one_image_repeats_as_in_the_training(make_runner):
    hook = DynamicSparsityHook()
    runner = make_runner(hook, iters=2)
    dataset = runner._train_dataloader['dataset']
    dataset.images, dataset.labels = dataset.images[:1], dataset.labels[:1]
    runner.train()
    assert 0 < hook.masks.density < 1


def test_other_errors_of_the_model_are_its_own(make_runner):
    runner = prepared(make_runner())

    def forward(*args, **kwargs):
        raise ValueError('cost matrix is infeasible')

    runner.model.forward = forward
    with pytest.raises(ValueError, match='^cost matrix is infeasible$'):
        snip_scores(runner, select_parameters(runner.model), seed=5)
