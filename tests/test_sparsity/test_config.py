"""What docs/sparsity.md says about configs."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


@pytest.fixture
def leaf(tmp_path):
    """Makes a config that inherits a dense one's bases and the sparsity."""

    def make(runtime, schedule):
        bases = [f'schedules/{schedule}', runtime, 'sparsity.py']
        (tmp_path / 'sparse.py').write_text(
            f'_base_ = {[str(CONFIGS / "_base_" / base) for base in bases]}\n'
            'default_hooks = dict(sparsity=_base_.sparsity)\n'
        )
        return tmp_path / 'sparse.py'

    return make


@pytest.mark.parametrize(
    ('runtime', 'schedule'),
    [('mmseg_runtime.py', 'adamw_160k.py'), ('mmdet_runtime.py', 'adamw_3x.py')],
)
def test_two_lines_turn_it_on_and_one_turns_it_off(leaf, tmp_path, runtime, schedule):
    sparse = leaf(runtime, schedule)
    hooks = Config.fromfile(sparse).default_hooks
    assert {'logger', 'checkpoint', 'sparsity'} <= set(hooks)
    hook = HOOKS.build(dict(hooks.sparsity))
    assert (hook.sparsity, hook.mode, hook.init) == (0.4, 'auto', 'snip')
    assert (hook.update_interval, hook.prune_rate) == (2000, 0.5)

    (tmp_path / 'off.py').write_text(
        "_base_ = './sparse.py'\ndefault_hooks = dict(sparsity=dict(mode='off'))\n"
    )
    off = Config.fromfile(tmp_path / 'off.py').default_hooks
    assert HOOKS.build(dict(off.sparsity)).mode == 'off'
    assert 'checkpoint' in off

    cfg = Config.fromfile(sparse)
    cfg.merge_from_dict({'default_hooks.sparsity.mode': 'off'})
    assert HOOKS.build(dict(cfg.default_hooks.sparsity)).mode == 'off'


def test_the_demonstration_has_a_sparse_twin():
    dense, sparse = (
        Config.fromfile(CONFIGS / 'demo' / f'upernet_pelk_narrow_drawn_scenes{end}.py')
        for end in ('', '_sparse')
    )
    hook = HOOKS.build(dict(sparse.default_hooks.pop('sparsity')))
    assert hook.sparsity == 0.4
    assert hook.update_interval < dense.train_cfg.max_iters / 10
    assert sparse.to_dict() == dense.to_dict()
