import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pelk_mm.analysis.shape_tensor import (
    NeedsValuesError,
    ShapeTensor,
    unknown_is_one,
)


def shaped(*shape, dtype=torch.float32):
    return ShapeTensor(torch.empty(shape, dtype=dtype, device='meta'))


def test_only_the_shape_is_computed():
    x = shaped(2, 3, 8, 10)
    y = F.relu(F.conv2d(x, shaped(4, 3, 3, 3), padding=1), inplace=True)
    assert isinstance(y, ShapeTensor)
    assert (y.shape, y.device.type, y.dtype) == ((2, 4, 8, 10), 'cpu', torch.float32)
    assert F.adaptive_avg_pool2d(y, 1).shape == (2, 4, 1, 1)
    assert torch.cat([y, torch.ones(1, 4, 8, 10)]).shape == (3, 4, 8, 10)
    assert y.to('cpu', torch.float16).dtype == torch.float16


def test_what_does_not_depend_on_it_stays_real():
    sizes = torch.tensor([[8, 10], [4, 5]])
    x = shaped(2, int(sizes.prod(1).sum()), 16)
    levels = x.split([h * w for h, w in sizes], dim=1)
    assert [level.shape[1] for level in levels] == [80, 20]
    assert x.new_full((2,), 7).tolist() == [7, 7]
    assert torch.ones_like(x[:, 0, :1]).tolist() == [[1], [1]]
    chosen = torch.arange(100) < 3
    assert x[:, chosen].shape == (2, 3, 16)


def test_large_tensors_are_not_made():
    assert isinstance(shaped(1).new_zeros(2**25), ShapeTensor)


def test_real_tensors_keep_their_values_when_written_to():
    real = torch.zeros(3)
    real[:2] = shaped(2)
    real += shaped(3)
    assert real.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    'read',
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: (x > 0).nonzero(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        lambda x: x.unsqueeze_(0),
    ],
)
def test_values_that_are_needed_are_an_error(read):
    with pytest.raises(NeedsValuesError):
        read(shaped(4))


def test_unknown_numbers_may_read_as_one():
    with unknown_is_one():
        assert torch.isfinite(shaped(4)).all().item() is True
    with pytest.raises(NeedsValuesError, match='_local_scalar_dense'):
        shaped(4).sum().item()


def test_operators_are_counted_once():
    x, linear = shaped(5, 8), nn.Linear(8, 3, bias=False)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        torch.func.functional_call(linear, {'weight': shaped(3, 8)}, (x,))
    assert counter.get_total_flops() == 2 * 5 * 8 * 3
