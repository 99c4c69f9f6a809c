import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pelk_mm.backbones import PeLK
from pelk_mm.sparsity import (
    allocate,
    draw_masks,
    erk,
    masks_from_zeros,
    select_parameters,
    snip,
    uniform,
)
from pelk_mm.sparsity.initializers import is_sparse, share_of_zeros

shape = st.one_of(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(
        st.integers(1, 20), st.integers(1, 8), st.integers(1, 9), st.integers(1, 9)
    ),
)


@settings(deadline=None, max_examples=150)
@given(
    shapes=st.lists(shape, min_size=1, max_size=8),
    density=st.floats(0.05, 0.95),
    kind=st.sampled_from(['uniform', 'erk', 'snip', 'zero scores']),
)
def test_counts_are_exact_and_no_layer_is_empty(shapes, density, kind):
    params = {str(i): torch.empty(s) for i, s in enumerate(shapes)}
    total = sum(p.numel() for p in params.values())
    scale = 0.0 if kind == 'zero scores' else 1.0
    generator = torch.Generator().manual_seed(len(shapes))
    scores = {
        n: scale * torch.rand(p.shape, generator=generator) ** (3 * int(n))
        for n, p in params.items()
    }
    rule = {'uniform': uniform, 'erk': erk}.get(kind, snip(scores))
    if round(density * total) < len(params):
        with pytest.raises(ValueError, match='a layer keeps one at least'):
            allocate(params, density, rule)
        return
    counts = allocate(params, density, rule)
    assert list(counts) == list(params)
    assert sum(counts.values()) == round(density * total)
    assert all(1 <= counts[n] <= p.numel() for n, p in params.items())
    masks = draw_masks(params, counts, generator)
    assert {n: int(m.sum()) for n, m in masks.items()} == counts


@pytest.mark.parametrize('kind', ['uniform', 'erk', 'snip'])
def test_all_layers_may_become_dense(kind):
    params = dict(a=torch.empty(1, 1))
    rule = {'uniform': uniform, 'erk': erk}.get(kind, snip(dict(a=torch.ones(1, 1))))
    assert allocate(params, 0.75, rule) == dict(a=1)


def test_uniform_by_hand():
    params = dict(a=torch.empty(10, 10), b=torch.empty(5, 1, 2, 2))
    assert allocate(params, 0.6, uniform) == dict(a=60, b=12)


def test_erk_by_hand():
    # Of 72 weights b would get 72 * 11 / 31 = 25.5 of its 20 and becomes dense.
    params = dict(a=torch.empty(10, 10), b=torch.empty(4, 1, 5, 1))
    assert allocate(params, 0.6, erk) == dict(a=52, b=20)
    # Shapes that sum to the same get the same number.
    params = dict(a=torch.empty(10, 10), b=torch.empty(9, 1, 5, 5))
    assert allocate(params, 0.4, erk) == dict(a=65, b=65)


def test_snip_by_hand():
    params = dict(a=torch.empty(2, 3), b=torch.empty(2, 2))
    scores = dict(
        a=torch.tensor([[9.0, 1.0, 8.0], [0.0, 7.0, 6.0]]),
        b=torch.tensor([[5.0, 2.0], [3.0, 0.5]]),
    )
    # The five best are 9 8 7 6 | 5.
    assert allocate(params, 0.5, snip(scores)) == dict(a=4, b=1)
    # A layer without any good one keeps one weight.
    scores['b'] = torch.zeros(2, 2)
    assert allocate(params, 0.4, snip(scores)) == dict(a=3, b=1)


def test_dense_layers_are_made_up_for_by_the_others():
    params = dict(a=torch.empty(100, 10), b=torch.empty(10, 10))
    scores = dict(a=torch.rand(100, 10), b=1 + torch.rand(10, 10))
    scores['b'][0, 0] = 0  # 99 of 100 would be active
    assert allocate(params, 0.5, snip(scores)) == dict(a=450, b=100)


def test_draws_are_seeded_and_spread_evenly():
    params = dict(a=torch.empty(100, 100))
    first, again, other = (
        draw_masks(params, dict(a=6000), torch.Generator().manual_seed(seed))['a']
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first.sum(0) - 60).abs().max() < 25


def test_zeros_of_a_checkpoint():
    weight = torch.tensor([[0.0, 1.0], [-2.0, 0.0]])
    masks = masks_from_zeros(dict(a=weight))
    assert torch.equal(masks['a'], torch.tensor([[False, True], [True, False]]))


def test_share_of_zeros():
    params = dict(
        half=torch.tensor([[0.0, 1.0], [-2.0, 0.0]]),
        full=torch.ones(3, 4),
        # Initialised with zeros, which no mask has put there.
        empty=torch.zeros(2, 2),
    )
    assert share_of_zeros(params) == 0.1
    assert is_sparse(share_of_zeros(params))
    assert not is_sparse(share_of_zeros(dict(full=params['full'])))


def test_pelk_tiny_at_forty_percent():
    with torch.device('meta'):
        params = select_parameters(PeLK('tiny'), [''])
    total = sum(p.numel() for p in params.values())
    for rule in (uniform, erk):
        assert sum(allocate(params, 0.6, rule).values()) == round(0.6 * total)
