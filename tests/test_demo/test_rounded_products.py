"""Products of bfloat16 numbers, computed in float32 and rounded."""

import pytest
import torch
from torch import nn

from rounded_products import RoundedProducts


def run(model, x):
    """A model's output under autocast, and the gradients of its parameters."""
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16):
        out = model(x)
    out.float().square().sum().backward()
    return [out.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(
    'model',
    [
        nn.Conv2d(6, 4, 3, stride=2, padding=1),
        nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False),
        nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2)),
        nn.Sequential(nn.Flatten(2), nn.Linear(63, 5)),
        nn.Sequential(nn.Flatten(2), nn.Linear(63, 5, bias=False)),
    ],
    ids=['strided', 'depthwise', 'transposed', 'linear', 'without_bias'],
)
def test_they_are_bfloat16s_own_but_for_its_rounding(model):
    x = torch.randn(2, 6, 9, 7)
    with RoundedProducts():
        ours = run(model, x)
    for own, other in zip(ours, run(model, x), strict=True):
        assert own.dtype == other.dtype
        bound = 2**-6 * other.abs().max()
        torch.testing.assert_close(own, other, rtol=2**-5, atol=bound)


def test_sums_are_float32():
    # In bfloat16 256 + 1 is 256.
    ones = torch.ones(1, 512, dtype=torch.bfloat16)
    with RoundedProducts():
        assert torch.mm(ones, ones.T).item() == 512
        out = torch.mm(ones, ones.T * 0.501953125)
    assert out.dtype == torch.bfloat16
    assert out.item() == torch.tensor(512 * 0.501953125).bfloat16().item()


def test_what_is_not_bfloat16_is_left_alone():
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    plain = torch.conv2d(x, weight)
    with RoundedProducts():
        assert torch.conv2d(x, weight).equal(plain)
