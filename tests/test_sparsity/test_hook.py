from itertools import pairwise

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from torch import nn

from pelk_mm.checkpoints import load_weights_only
from pelk_mm.sparsity import DynamicSparsityHook, SparsityMasks, select_parameters


def changes(checksums):
    """Iterations, counted from 1, that left other masks than the one before."""
    return [i + 2 for i, (a, b) in enumerate(pairwise(checksums)) if a != b]


class Watch(Hook):
    """Notes the state after every iteration."""

    priority = 'LOWEST'

    def __init__(self, sparsity):
        self.sparsity = sparsity
        self.active, self.nonzero, self.checksums, self.dirty = [], [], [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        masks = self.sparsity.masks
        self.active.append(masks.active)
        params = select_parameters(runner.model)
        self.nonzero.append(sum(int(p.count_nonzero()) for p in params.values()))
        self.checksums.append(masks.checksum())
        optimizer = runner.optim_wrapper.optimizer
        self.dirty.append(
            sum(
                int((value * (masks.masks[name] == 0)).count_nonzero())
                for name, param in masks.params.items()
                for value in optimizer.state[param].values()
                if value.shape == param.shape
            )
        )


def train(make_runner, *hooks, **kwargs):
    settings = {
        key: kwargs.pop(key)
        for key in ('sparsity', 'mode', 'init', 'growth', 'update_interval', 'patterns')
        if key in kwargs
    }
    sparsity = DynamicSparsityHook(**{'update_interval': 5} | settings)
    watch = Watch(sparsity)
    runner = make_runner(sparsity, watch, *hooks, **kwargs)
    runner.train()
    return runner, sparsity, watch


def log_of(folder):
    return '\n'.join(path.read_text() for path in folder.glob('*/*.log'))


def promised(model):
    total = sum(p.numel() for p in select_parameters(model).values())
    return round(0.6 * total)


def test_it_is_registered():
    assert HOOKS.get('DynamicSparsityHook') is DynamicSparsityHook


@pytest.mark.long
@pytest.mark.parametrize('growth', ['random', 'gradient'])
@pytest.mark.parametrize(
    'optimizer',
    [dict(type='AdamW', lr=0.01), dict(type='SGD', lr=0.01, momentum=0.9)],
    ids=lambda cfg: cfg['type'],
)
def test_sixty_iterations_keep_the_density_to_the_weight(
    make_runner, tmp_path, growth, optimizer
):
    runner, sparsity, watch = train(
        make_runner, iters=60, growth=growth, optimizer=optimizer
    )
    number = promised(runner.model)
    assert watch.active == [number] * 60
    assert watch.nonzero == [number] * 60
    assert watch.dirty == [0] * 60
    # Every fifth step but the last.
    assert changes(watch.checksums) == [*range(5, 60, 5)]
    scalars = runner.message_hub.log_scalars
    assert scalars['train/density'].current() == pytest.approx(0.6, abs=1e-4)
    assert scalars['train/regrown'].data[0].tolist()[0] == 0
    assert all(scalars['train/regrown'].data[0][1:] > 0)
    checkpoint = load_weights_only(tmp_path / 'iter_60.pth')
    weights = [checkpoint['state_dict'][n] for n in select_parameters(runner.model)]
    assert sum(int(w.count_nonzero()) for w in weights) == number


@pytest.mark.parametrize('init', ['snip', 'erk', 'uniform'])
@pytest.mark.parametrize('sparsity', [0.1, 0.4, 0.9])
def test_density_is_as_requested(make_runner, init, sparsity):
    _, hook, _ = train(make_runner, iters=1, init=init, sparsity=sparsity)
    assert hook.masks.density == pytest.approx(1 - sparsity, rel=1e-3)
    assert all(0 < d < 0.99 for d in hook.masks.layer_densities().values())


def test_gradient_accumulation(make_runner):
    _, sparsity, watch = train(
        make_runner,
        iters=30,
        update_interval=3,
        optim_wrapper=dict(accumulative_counts=4),
    )
    # Steps after iterations 4, 8, .., 28 and the last: 8 of them.
    assert sparsity.steps == sparsity.total_steps == 8
    assert changes(watch.checksums) == [12, 24]
    assert len(set(watch.nonzero)) == 1


def test_steps_that_the_loss_scaler_skips_do_not_count(make_runner):
    sparsity = DynamicSparsityHook(update_interval=5)
    runner = make_runner(sparsity, iters=4)
    step = torch.amp.GradScaler.step

    class Skip(Hook):
        def before_train(self, runner):
            scaler = torch.amp.GradScaler('cpu')
            optimizer = runner.optim_wrapper.optimizer
            skipped = iter([False, True, False, False])

            def scaled_step(**kwargs):
                # What a scaler does: it calls the optimizer, or does not.
                scaler.scale(torch.zeros(()))
                if next(skipped):
                    for param in sparsity.masks.params.values():
                        param.grad.fill_(float('inf'))
                step(scaler, optimizer)
                scaler.update()

            runner.optim_wrapper.step = scaled_step

    runner.register_hook(Skip(), priority='LOWEST')
    runner.train()
    assert sparsity.steps == 3
    params = select_parameters(runner.model).values()
    assert sum(int(p.count_nonzero()) for p in params) == promised(runner.model)


def test_the_averaged_copy_is_masked(make_runner, tmp_path):
    ema = EMAHook(momentum=0.1)
    runner, sparsity, _ = train(make_runner, ema, iters=12)
    copies = dict(ema.ema_model.module.named_parameters())
    for name, mask in sparsity.masks.masks.items():
        assert torch.equal(copies[name] != 0, mask.bool())
    # The checkpoint's weights are the average's.
    state = load_weights_only(tmp_path / 'iter_12.pth')['state_dict']
    assert torch.equal(
        state['backbone.downsample_layers.0.0.weight'],
        copies['backbone.downsample_layers.0.0.weight'],
    )
    weights = [state[name] for name in select_parameters(runner.model)]
    assert sum(int(w.count_nonzero()) for w in weights) == promised(runner.model)


def test_fixed_keeps_the_zeros_of_a_checkpoint(make_runner, tmp_path):
    train(make_runner, iters=6)
    state = load_weights_only(tmp_path / 'iter_6.pth')['state_dict']
    runner, sparsity, watch = train(
        make_runner, iters=12, mode='fixed', load_from=str(tmp_path / 'iter_6.pth')
    )
    assert len(set(watch.checksums)) == 1
    for name, param in select_parameters(runner.model).items():
        assert torch.equal(param != 0, state[name] != 0)
        assert not torch.equal(param, state[name])


def test_dynamic_from_the_zeros_of_a_checkpoint(make_runner, tmp_path):
    train(make_runner, iters=6)
    state = load_weights_only(tmp_path / 'iter_6.pth')['state_dict']
    _, sparsity, watch = train(
        make_runner, iters=12, init='resume', load_from=str(tmp_path / 'iter_6.pth')
    )
    names = sparsity.masks.masks
    zeros = SparsityMasks(
        sparsity.masks.params, {name: state[name] != 0 for name in names}
    )
    assert watch.checksums[0] == zeros.checksum() != watch.checksums[-1]


def test_new_masks_over_the_zeros_of_a_checkpoint_are_refused(make_runner, tmp_path):
    train(make_runner, iters=6)
    with pytest.raises(ValueError, match=r"are zero, so .*mode='fixed' or 'auto'"):
        train(make_runner, load_from=str(tmp_path / 'iter_6.pth'))


def test_fixed_without_zeros_is_refused(make_runner):
    with pytest.raises(ValueError, match='no sparsity to keep; load a checkpoint'):
        train(make_runner, mode='fixed')


def test_auto_is_dynamic_from_dense_weights(make_runner, tmp_path):
    _, sparsity, watch = train(make_runner, mode='auto')
    assert sparsity.mode == 'auto'
    assert sparsity.chosen_mode == 'dynamic'
    assert changes(watch.checksums) == [5, 10]
    assert '(auto) is dynamic, since 0.0% of the weights' in log_of(tmp_path)


def test_auto_keeps_the_zeros_of_sparse_weights(make_runner, tmp_path):
    train(make_runner, iters=6)
    state = load_weights_only(tmp_path / 'iter_6.pth')['state_dict']
    runner, sparsity, watch = train(
        make_runner, mode='auto', load_from=str(tmp_path / 'iter_6.pth')
    )
    assert sparsity.chosen_mode == 'fixed'
    assert changes(watch.checksums) == []
    for name, param in select_parameters(runner.model).items():
        assert torch.equal(param != 0, state[name] != 0)
        assert not torch.equal(param, state[name])
    assert '(auto) is fixed, since 40.0% of the weights' in log_of(tmp_path)


def test_off_does_nothing(make_runner, tmp_path):
    sparsity = DynamicSparsityHook(mode='off')
    runner = make_runner(sparsity, iters=3)
    runner.train()
    assert sparsity.masks is None
    assert 'sparsity' not in load_weights_only(tmp_path / 'iter_3.pth')
    assert all(bool(p.all()) for p in select_parameters(runner.model).values())


def test_frozen_stages_stay_whole(make_runner, classifier):
    model = classifier(frozen_stages=2)
    runner, sparsity, watch = train(make_runner, model=model)
    frozen = dict(model.backbone.stages[:2].named_parameters())
    assert all(bool(p.all()) for p in frozen.values() if p.ndim in (2, 4))
    assert watch.nonzero == [promised(model)] * 12


def test_layer_decay_groups_and_recomputation(make_runner, classifier):
    torch.manual_seed(0)
    _, _, watch = train(
        make_runner,
        model=classifier(with_cp=True),
        optim_wrapper=dict(
            constructor='LargeKernelLayerDecayOptimizerConstructor',
            paramwise_cfg=dict(decay_rate=0.9, decay_type='layer_wise'),
        ),
    )
    assert len(set(watch.nonzero)) == 1
    assert watch.dirty == [0] * 12


def test_testing_takes_no_notice(make_runner, tmp_path):
    trained, _, _ = train(make_runner, iters=6)
    runner = make_runner(DynamicSparsityHook(), load_from=str(tmp_path / 'iter_6.pth'))
    runner.call_hook('before_run')
    runner.load_or_resume()
    runner.call_hook('before_test')
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, trained.model.state_dict()[name])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(sparsity=0), r"sparsity 0 is not in \(0.01, 1\).*mode='off'"),
        (dict(sparsity=40), 'sparsity 40 is not'),
        (dict(mode='static'), "mode 'static' is not one of dynamic, fixed, auto, off"),
        (dict(init='SNIP'), "init 'SNIP' is not one of snip"),
        (dict(growth='momentum'), "growth 'momentum' is not one of random"),
        (dict(update_interval=0), 'update_interval 0 is not'),
        (dict(prune_rate=1.5), 'prune_rate 1.5'),
        (dict(seed=-1), r'seed -1 is not in \[0, 2\*\*32\)'),
        (dict(seed=2**32), 'seed 4294967296 is not in'),
        (dict(prune_rate=0.001), 'prune_rate 0.001 and min_prune_rate 0.005'),
        (dict(patterns='backbone'), "patterns 'backbone' is one string"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DynamicSparsityHook(**arguments)


def test_weights_outside_the_optimizer_are_refused(make_runner):
    model_only = DynamicSparsityHook(patterns=['.'])
    runner = make_runner(model_only)
    head = runner.model.head.parameters()
    runner.optim_wrapper = OptimWrapper(torch.optim.SGD(head, lr=0.1))
    with pytest.raises(ValueError, match='no optimizer trains all weights'):
        runner.train()


@pytest.mark.parametrize(
    'name',
    ['MMFullyShardedDataParallel', 'FSDPLinear', 'MMDeepSpeedEngineWrapper'],
)
def test_sharded_training_is_refused(make_runner, name):
    runner = make_runner(DynamicSparsityHook(), iters=1)
    # The libraries are not needed to see them at work.
    runner.model.head.__class__ = type(name, (nn.Linear,), {})
    with pytest.raises(RuntimeError, match=rf'cannot run with {name}: .*DDP'):
        runner.train()
