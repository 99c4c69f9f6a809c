import pytest
import torch
from torch import nn

from pelk_mm.sparsity import SparsityMasks, prune_and_grow, prune_rate
from pelk_mm.sparsity.masks import GROWN_VALUE


def test_rate_follows_half_a_cosine():
    assert prune_rate(0, 100, 0.5, 0.005) == 0.5
    assert prune_rate(50, 100, 0.5, 0.005) == pytest.approx(0.2525)
    assert prune_rate(100, 100, 0.5, 0.005) == pytest.approx(0.005)


def test_a_cycle_by_hand():
    """One full cycle of a layer of ten weights, by gradient, with momentum."""
    weight = nn.Parameter(
        torch.tensor([[0.5, -0.1, 0.3, 9.0, -0.2], [0.05, 7.0, -0.4, 8.0, 6.0]])
    )
    mask = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 1, 0, 0]])
    masks = SparsityMasks(dict(w=weight), dict(w=mask))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    weight.grad = torch.tensor([[0.0, 0, 0, 0.2, 0], [0, -0.9, 0, 0.3, 0.1]])
    optimizer.step()
    masks.apply(optimizer)
    # Masking alone: the inactive ones are zero again, and so is their momentum.
    expected = torch.tensor([[0.5, -0.1, 0.3, 0, -0.2], [0.05, 0, -0.4, 0, 0]])
    assert torch.equal(weight, expected)
    assert not optimizer.state[weight]['momentum_buffer'].any()

    # Of six active weights a rate of 0.4 drops int(2.4) = 2: 0.05 and -0.1. The two
    # largest gradients among the then inactive ones are -0.9 and 0.3.
    optimizer.state[weight]['momentum_buffer'].fill_(1.0)
    new = prune_and_grow(weight, mask, 0.4, torch.Generator(), weight.grad)
    assert masks.replace(dict(w=new), optimizer) == 2
    assert torch.equal(new.int(), torch.tensor([[1, 0, 1, 0, 1], [0, 1, 1, 1, 0]]))
    expected = torch.tensor(
        [[0.5, 0, 0.3, 0, -0.2], [0, GROWN_VALUE, -0.4, GROWN_VALUE, 0]]
    )
    assert torch.equal(weight, expected)
    assert torch.equal(optimizer.state[weight]['momentum_buffer'], new.float())
    assert masks.active == 6


def test_random_growth_by_hand():
    weight = torch.tensor([4.0, 1.0, 3.0, 2.0, 0, 0, 0, 0]).view(2, 4)
    mask = weight != 0
    new = prune_and_grow(weight, mask, 0.5, torch.Generator().manual_seed(0))
    # 4 and 3 stay. The others, 1 and 2 included, are candidates in this order.
    drawn = torch.randperm(6, generator=torch.Generator().manual_seed(0))[:2]
    expected = {0, 2, *torch.tensor([1, 3, 4, 5, 6, 7])[drawn].tolist()}
    assert set(new.flatten().nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize('growth', ['random', 'gradient'])
@pytest.mark.parametrize('rate', [0.0, 0.005, 0.3, 0.5, 0.99])
def test_density_stays_and_only_small_weights_go(growth, rate):
    weight = torch.randn(30, 40)
    mask = torch.rand(30, 40) < 0.6
    grad = torch.randn(30, 40) if growth == 'gradient' else None
    new = prune_and_grow(weight * mask, mask, rate, torch.Generator(), grad)
    assert new.sum() == mask.sum()
    dropped = mask & ~new
    number = int(rate * int(mask.sum()))
    assert dropped.sum() <= number
    if number:
        limit = weight[mask].abs().sort().values[number - 1]
        assert (weight[dropped].abs() <= limit).all()


def test_ties_are_settled_by_position():
    weight = torch.ones(1, 8)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]])
    new = prune_and_grow(weight, mask, 0.5, torch.Generator(), torch.zeros(1, 8))
    assert torch.equal(new.int(), mask)  # the first two go, and come back


def test_a_layer_is_never_emptied():
    weight, mask = torch.ones(1, 4), torch.tensor([[1, 0, 0, 0]])
    assert prune_and_grow(weight, mask, 0.99, torch.Generator()).sum() == 1
