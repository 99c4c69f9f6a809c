"""The plain-torch definitions."""

import pytest
import torch

from pelk_mm.ops import reference

GRID = (3, 1, 2, 1)  # asymmetric, K = 7


def test_expand_kernel_gives_every_position_its_parameter():
    weight = torch.arange(16.0).view(1, 4, 4)
    kernel = reference.expand_kernel(weight, GRID)
    cell = [0, 0, 0, 1, 2, 2, 3]
    for i in range(7):
        for j in range(7):
            assert kernel[0, i, j] == weight[0, cell[i], cell[j]]


def test_box_sum_is_the_adjoint_of_expand_kernel():
    weight = torch.randn(3, 4, 4, dtype=torch.float64)
    kernel = torch.randn(3, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(
        (reference.expand_kernel(weight, GRID) * kernel).sum(),
        (weight * reference.box_sum(kernel, GRID)).sum(),
    )


@pytest.mark.parametrize(
    ('operator', 'shape'), [(reference.expand_kernel, 4), (reference.box_sum, 7)]
)
def test_gradients(operator, shape):
    leaf = torch.randn(2, shape, shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: operator(t, GRID), leaf)
    assert torch.autograd.gradgradcheck(lambda t: operator(t, GRID), leaf)


def test_leading_axes_and_meta_tensors():
    weight = torch.randn(5, 2, 4, 4)
    kernel = reference.expand_kernel(weight, GRID)
    assert torch.equal(kernel[3], reference.expand_kernel(weight[3], GRID))
    sums = reference.box_sum(kernel, GRID)
    sizes = torch.tensor(GRID, dtype=weight.dtype)
    torch.testing.assert_close(sums, weight * sizes.outer(sizes))
    assert reference.expand_kernel(weight.to('meta'), GRID).shape == kernel.shape
    assert reference.box_sum(kernel.to('meta'), GRID).shape == weight.shape


@pytest.mark.parametrize('shape', [(2, 3, 6, 5), (1, 3, 1, 1)])
def test_peripheral_convolution_by_loops(shape):
    x = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(3, 4, 4, dtype=torch.float64)
    out = reference.peripheral_conv2d(x, weight, GRID)
    kernel = reference.expand_kernel(weight, GRID)
    padded = torch.nn.functional.pad(x, (3, 3, 3, 3))
    expected = torch.zeros_like(x)
    height, width = shape[2:]
    for i in range(7):
        for j in range(7):
            window = padded[:, :, i : i + height, j : j + width]
            expected += kernel[:, i, j, None, None] * window
    torch.testing.assert_close(out, expected)
