import random

import numpy as np
import pytest
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.runner import set_random_seed
from torch import nn

from pelk_mm.sparsity import select_parameters, snip_scores


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
    dataset = runner.train_dataloader.dataset
    items = [dataset[i] for i in torch.randperm(16)[:4].tolist()]
    images = torch.stack([item['inputs'] for item in items])
    labels = torch.stack([item['label'] for item in items])
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


def test_a_loss_that_is_not_finite_is_refused(make_runner):
    runner = prepared(make_runner())
    runner.model.head.bias.data.fill_(float('nan'))
    with pytest.raises(ValueError, match=r"loss of the batch for SNIP is nan.*'erk'"):
        snip_scores(runner, select_parameters(runner.model), seed=5)
