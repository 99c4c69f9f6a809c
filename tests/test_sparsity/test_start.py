"""Every combination that a training with sparsity can start from."""

from itertools import product

import pytest

from pelk_mm.sparsity.start import INITS, MODES, VERSION, Start, start

SPARSITY = 0.4
DENSITY = 1 - SPARSITY
MIXED = 'are zero, so they were trained sparse; keep the zeros'
NOTHING = 'are zero, so there is no sparsity to keep; load a checkpoint'

# Of a new training, from dense and from sparse weights: mode and masks, or the error.
NEW = {
    ('dynamic', 'snip'): (('dynamic', 'snip'), MIXED),
    ('dynamic', 'erk'): (('dynamic', 'erk'), MIXED),
    ('dynamic', 'uniform'): (('dynamic', 'uniform'), MIXED),
    ('dynamic', 'resume'): (NOTHING, ('dynamic', 'zeros')),
    ('fixed', 'snip'): (NOTHING, ('fixed', 'zeros')),
    ('fixed', 'erk'): (NOTHING, ('fixed', 'zeros')),
    ('fixed', 'uniform'): (NOTHING, ('fixed', 'zeros')),
    ('fixed', 'resume'): (NOTHING, ('fixed', 'zeros')),
    ('auto', 'snip'): (('dynamic', 'snip'), ('fixed', 'zeros')),
    ('auto', 'erk'): (('dynamic', 'erk'), ('fixed', 'zeros')),
    ('auto', 'uniform'): (('dynamic', 'uniform'), ('fixed', 'zeros')),
    ('auto', 'resume'): (NOTHING, ('fixed', 'zeros')),
}

# Of a resumed training, where the checkpoint says dynamic, fixed, or nothing (it is
# older than auto): mode, and the density that its masks have to have.
RESUMED = {
    ('dynamic', 'snip'): [('dynamic', DENSITY)] * 3,
    ('dynamic', 'erk'): [('dynamic', DENSITY)] * 3,
    ('dynamic', 'uniform'): [('dynamic', DENSITY)] * 3,
    ('dynamic', 'resume'): [('dynamic', None)] * 3,
    ('fixed', 'snip'): [('fixed', None)] * 3,
    ('fixed', 'erk'): [('fixed', None)] * 3,
    ('fixed', 'uniform'): [('fixed', None)] * 3,
    ('fixed', 'resume'): [('fixed', None)] * 3,
    ('auto', 'snip'): [('dynamic', DENSITY), ('fixed', None), ('dynamic', DENSITY)],
    ('auto', 'erk'): [('dynamic', DENSITY), ('fixed', None), ('dynamic', DENSITY)],
    ('auto', 'uniform'): [('dynamic', DENSITY), ('fixed', None), ('dynamic', DENSITY)],
    ('auto', 'resume'): [('dynamic', None), ('fixed', None), ('dynamic', None)],
}
ENTRIES = [dict(mode='dynamic'), dict(mode='fixed'), dict()]


def test_the_tables_are_complete():
    assert set(NEW) == set(RESUMED) == {*product(set(MODES) - {'off'}, INITS)}


@pytest.mark.parametrize(('mode', 'init'), NEW)
@pytest.mark.parametrize('zeros', [0.0, 0.0099, 0.01, 0.4])
# What a checkpoint that is only loaded has in its entry does not matter.
@pytest.mark.parametrize('saved', [None, dict(version=0), dict(version=VERSION)])
def test_new_training(mode, init, zeros, saved):
    expected = NEW[mode, init][zeros >= 0.01]

    def begin():
        return start(mode, init, SPARSITY, resumed=False, saved=saved, zeros=zeros)

    if isinstance(expected, str):
        with pytest.raises(ValueError, match=f'{zeros:.1%} of .*{expected}'):
            begin()
        return
    reason = f'{zeros:.1%} of the weights that the training starts from are zero'
    assert begin() == Start(*expected, reason=reason if mode == 'auto' else None)


@pytest.mark.parametrize(('mode', 'init'), RESUMED)
@pytest.mark.parametrize('entry', [0, 1, 2])
# A resumed run looks at no weights: those of a dynamic one have zeros as well.
@pytest.mark.parametrize('zeros', [0.0, 0.4])
def test_resumed_training(mode, init, entry, zeros):
    saved = dict(version=VERSION, **ENTRIES[entry])
    chosen, density = RESUMED[mode, init][entry]
    reason = 'the resumed run was' if mode == 'auto' else None
    assert start(mode, init, SPARSITY, resumed=True, saved=saved, zeros=zeros) == Start(
        chosen, 'checkpoint', density, reason
    )


@pytest.mark.parametrize(('mode', 'init'), RESUMED)
@pytest.mark.parametrize(
    ('saved', 'message'),
    [
        (None, 'trained without DynamicSparsityHook; to start from its weights use'),
        (dict(), 'has version None, this pelk_mm reads 1; resume with the pelk_mm'),
        (dict(version=2, mode='fixed'), 'has version 2, this pelk_mm reads 1'),
    ],
)
@pytest.mark.parametrize('zeros', [0.0, 0.4])
def test_resuming_another_checkpoint_is_refused(mode, init, saved, message, zeros):
    with pytest.raises(ValueError, match=message):
        start(mode, init, SPARSITY, resumed=True, saved=saved, zeros=zeros)
