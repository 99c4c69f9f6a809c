import pytest
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.hooks import EMAHook, Hook

from pelk_mm.checkpoints import load_weights_only
from pelk_mm.engine.random_state import IterationSeedHook
from pelk_mm.sparsity import DynamicSparsityHook

ITERS = 24


class KilledError(Exception):
    """Stands for a kill."""


class Record(Hook):
    """Notes losses and masks, and dies in an iteration if told to."""

    def __init__(self, sparsity, kill_at=None):
        self.sparsity = sparsity
        self.kill_at = kill_at
        self.log = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.kill_at:
            raise KilledError

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.log[runner.iter] = (
            outputs['loss'].item(),
            self.sparsity.masks.checksum(),
        )


def run(make_runner, kill_at=None, **kwargs):
    sparsity = DynamicSparsityHook(update_interval=3, **kwargs.pop('settings', {}))
    record = Record(sparsity, kill_at)
    hooks = [sparsity, record, *kwargs.pop('hooks', [])]
    if kwargs.pop('seeded', True):
        hooks.append(IterationSeedHook())
    runner = make_runner(*hooks, iters=ITERS, save=4, **kwargs)
    try:
        runner.train()
    except KilledError:
        assert kill_at is not None
    return runner, record.log


@pytest.mark.long
@pytest.mark.parametrize(
    ('growth', 'ema', 'accumulated'),  # every pair of values
    [
        ('random', False, 1),
        ('random', True, 2),
        ('gradient', False, 2),
        ('gradient', True, 1),
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    make_runner, growth, ema, accumulated
):
    settings = dict(
        settings=dict(growth=growth),
        optim_wrapper=dict(accumulative_counts=accumulated),
    )

    def hooks():
        return [EMAHook(momentum=0.1)] if ema else []

    whole, expected = run(make_runner, hooks=hooks(), **settings)
    kill_at = int(torch.randint(5, ITERS, ()))
    _, first = run(make_runner, kill_at, hooks=hooks(), **settings)
    # The latest checkpoint is now that of the killed run.
    again, rest = run(make_runner, hooks=hooks(), resume=True, **settings)
    saved = kill_at // 4 * 4
    assert list(first) == list(range(kill_at))
    assert list(rest) == list(range(saved, ITERS))
    assert len({checksum for _, checksum in expected.values()}) > 3
    assert first | rest == expected
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


@pytest.mark.parametrize('draws', [False, True])
def test_without_seeds_masks_repeat_where_nothing_draws(
    make_runner, monkeypatch, classifier, images, draws
):
    class Quiet(classifier):
        def __init__(self):
            torch.manual_seed(0)
            super().__init__()
            self.dropout.p = 0.1 if draws else 0.0
            for module in self.modules():
                if isinstance(module, DropPath):
                    module.drop_prob = 0.0

    def plain(self, index):
        return dict(inputs=self.images[index], label=self.labels[index])

    monkeypatch.setattr(images, '__getitem__', plain)
    expected = run(make_runner, model=Quiet(), seeded=False)[1]
    run(make_runner, 13, model=Quiet(), seeded=False)
    rest = run(make_runner, model=Quiet(), seeded=False, resume=True)[1]
    assert list(rest) == list(range(12, ITERS))
    assert (rest == {i: expected[i] for i in rest}) != draws


def test_resuming_what_was_trained_dense_is_refused(make_runner):
    make_runner(iters=4, save=4).train()
    runner = make_runner(DynamicSparsityHook(), iters=8, resume=True)
    with pytest.raises(ValueError, match=r'without DynamicSparsityHook.*load_from'):
        runner.train()


def test_resuming_with_other_weights_is_refused(make_runner):
    make_runner(DynamicSparsityHook(), iters=4, save=4).train()
    other = DynamicSparsityHook(large_kernels_only=True)
    with pytest.raises(ValueError, match='masks of other weights: .*differ; resume'):
        make_runner(other, iters=8, resume=True).train()


def test_resuming_a_later_version_is_refused(make_runner, monkeypatch):
    make_runner(DynamicSparsityHook(), iters=4, save=4).train()
    monkeypatch.setattr('pelk_mm.sparsity.start.VERSION', 0)
    with pytest.raises(ValueError, match='version 1, this pelk_mm reads 0'):
        make_runner(DynamicSparsityHook(), iters=8, resume=True).train()


def test_resuming_at_another_density_is_refused(make_runner):
    make_runner(DynamicSparsityHook(), iters=4, save=4).train()
    with pytest.raises(ValueError, match=r'density 0.6\d*, .* so set sparsity=0.4\d*'):
        make_runner(DynamicSparsityHook(sparsity=0.5), iters=8, resume=True).train()


@pytest.mark.parametrize('sparse', [False, True])
def test_auto_goes_on_as_it_began(make_runner, tmp_path, sparse):
    start = {}
    if sparse:
        make_runner(DynamicSparsityHook(), iters=4, save=4).train()
        start = dict(load_from=str(tmp_path / 'iter_4.pth'))
    settings = dict(mode='auto')
    _, log = run(make_runner, 13, settings=settings, **start)
    # All of these weights are sparse, also those that the run itself made so.
    again, rest = run(make_runner, settings=settings, resume=True)
    hook = next(h for h in again.hooks if isinstance(h, DynamicSparsityHook))
    assert hook.chosen_mode == ('fixed' if sparse else 'dynamic')
    assert list(rest) == list(range(12, ITERS))
    masks = {checksum for _, checksum in (log | rest).values()}
    assert (len(masks) == 1) == sparse


def test_auto_resumes_an_entry_older_than_it(make_runner, tmp_path):
    make_runner(DynamicSparsityHook(), iters=4, save=4).train()
    path = tmp_path / 'iter_4.pth'
    checkpoint = load_weights_only(path)
    del checkpoint['sparsity']['mode']
    torch.save(checkpoint, path)
    hook = DynamicSparsityHook(mode='auto')
    make_runner(hook, iters=8, resume=True).train()
    assert hook.chosen_mode == 'dynamic'
