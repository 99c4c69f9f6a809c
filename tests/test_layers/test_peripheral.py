import pytest
import torch
import torch.nn.functional as F

from pelk_mm.layers import PartialPeripheralConv2d, PeripheralConv2d
from pelk_mm.ops import box_sum, expand_kernel

GRID = (3, 2, 1, 1, 1, 2, 3)


@pytest.mark.parametrize('size', [(16, 20), (7, 9), (3, 2), (1, 1)])
def test_equals_a_dense_convolution_with_repeated_parameters(size):
    conv = PeripheralConv2d(4, GRID, bias=True)
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(2, 4, *size)
    kernel = conv.weight.repeat_interleave(torch.tensor(GRID), 2)
    kernel = kernel.repeat_interleave(torch.tensor(GRID), 3)
    expected = F.conv2d(x, kernel, conv.bias, padding=6, groups=4)
    torch.testing.assert_close(conv(x), expected)


def test_embedding_is_a_constant_at_every_tap():
    """Eq. 3 computed literally: h added to each shifted, zero-padded input."""
    channels, size = 3, sum(GRID)
    conv = PeripheralConv2d(channels, GRID).double()
    x = torch.randn(2, channels, 8, 5, dtype=torch.float64)
    h = torch.randn(channels, size, size, dtype=torch.float64)
    weight = expand_kernel(conv.weight.squeeze(1), GRID)
    padded = F.pad(x, [size // 2] * 4)
    expected = torch.zeros_like(x)
    for i in range(size):
        for j in range(size):
            shifted = padded[:, :, i : i + 8, j : j + 5]
            tap = shifted + h[:, i, j].view(-1, 1, 1)
            expected += weight[:, i, j].view(-1, 1, 1) * tap
    torch.testing.assert_close(conv(x, box_sum(h, GRID)), expected)


def test_embedding_adds_to_a_bias():
    conv = PeripheralConv2d(2, GRID, bias=True)
    torch.nn.init.ones_(conv.bias)
    x, h = torch.zeros(1, 2, 4, 4), torch.randn(2, 7, 7)
    expected = 1 + conv.embedding_bias(h)
    torch.testing.assert_close(conv(x, h)[0, :, 0, 0], expected)


class TestCellMeans:
    @pytest.fixture
    def pair(self):
        means = PeripheralConv2d(2, GRID, cell_means=True)
        sums = PeripheralConv2d(2, GRID)
        sums.load_state_dict(means.state_dict())
        return means, sums

    def test_weights_multiply_about_the_mean(self, pair):
        means, _ = pair
        sides = torch.tensor(GRID)
        shares = means.cell_units * torch.outer(sides, sides)
        assert 0.5**0.5 <= shares.min() <= shares.max() <= 2**0.5

    def test_checkpoint_has_the_weights_of_the_paper(self, pair):
        means, sums = pair
        assert means.state_dict().keys() == sums.state_dict().keys()
        torch.testing.assert_close(
            sums.weight, means.weight * means.cell_units, rtol=0, atol=0
        )
        again = PeripheralConv2d(2, GRID, cell_means=True)
        given = sums.state_dict()
        before = given['weight'].clone()
        again.load_state_dict(given)
        assert torch.equal(again.weight, means.weight)  # every bit
        assert torch.equal(given['weight'], before)

    def test_same_function(self, pair):
        means, sums = pair
        x, embedding = torch.randn(1, 2, 9, 8), torch.randn(2, 7, 7)
        assert torch.equal(means(x, embedding), sums(x, embedding))
        assert torch.equal(
            means.embedding_bias(embedding), sums.embedding_bias(embedding)
        )
        means.merge_cell_units()
        assert torch.equal(means.weight, sums.weight)
        assert torch.equal(means(x, embedding), sums(x, embedding))

    def test_wrong_shape_is_reported(self, pair):
        with pytest.raises(RuntimeError, match='size mismatch for weight'):
            pair[0].load_state_dict(dict(weight=torch.ones(3, 1, 7, 7)))


@pytest.mark.long
def test_gradients():
    conv = PartialPeripheralConv2d(3, 2, (2, 1, 2), small_kernel=3).double()
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    parameters = tuple(conv.parameters())

    def mix(x, h, *values):
        names = [name for name, _ in conv.named_parameters()]
        return torch.func.functional_call(
            conv, dict(zip(names, values, strict=True)), (x, h)
        )

    assert torch.autograd.gradcheck(mix, (x, h, *parameters))


def test_other_channels_pass_unchanged():
    conv = PartialPeripheralConv2d(8, 3, GRID)
    x = torch.randn(2, 8, 9, 9)
    out = conv(x)
    assert torch.equal(out[:, 3:], x[:, 3:])
    torch.testing.assert_close(out[:, :3], conv.large(x[:, :3]))


def test_all_channels_may_be_convolved():
    assert PartialPeripheralConv2d(4, 4, GRID)(torch.randn(1, 4, 5, 5)).shape[1] == 4


@pytest.mark.parametrize(
    ('grid', 'size', 'absorbs'),
    [
        (GRID, 1, True),
        (GRID, 3, True),
        (GRID, 5, False),
        (GRID, 13, False),
        ((2, 1, 1, 1, 1, 1, 2), 5, True),
        ((1, 1, 1), 5, False),
        ((1, 1, 1, 2, 2), 3, False),  # ones, but off the centre
        ((1, 1, 1, 1, 1, 2), 5, False),
    ],
)
def test_which_small_kernels_fit_the_centre(grid, size, absorbs):
    assert PeripheralConv2d(1, grid).absorbs((size, size)) == absorbs


@pytest.mark.parametrize('channels', [0, 5])
def test_bad_conv_channels(channels):
    with pytest.raises(ValueError, match=f'{channels} of 4 channels .* conv_ratio'):
        PartialPeripheralConv2d(4, channels, GRID)


def test_small_kernel_larger_than_the_large_one():
    with pytest.raises(ValueError, match='small_kernel 15 is larger .* 13'):
        PartialPeripheralConv2d(4, 2, GRID, small_kernel=15)


def test_bad_grid():
    with pytest.raises(ValueError, match='kernel size 12 is not'):
        PeripheralConv2d(4, (4, 4, 4))


def test_repr_names_the_grid():
    assert 'kernel_size=13, sharing_grid=(3, 2' in repr(PeripheralConv2d(4, GRID))
