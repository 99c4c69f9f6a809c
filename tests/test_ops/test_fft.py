"""Convolution by Fourier transforms."""

import pytest
import torch

from pelk_mm.ops import fft, reference


@pytest.mark.parametrize(('least', 'length'), [(1, 2), (7, 8), (13, 16), (154, 160)])
def test_fast_lengths(least, length):
    assert fft.fast_length(least) == length


@pytest.mark.parametrize('shape', [(2, 3, 9, 12), (1, 5, 20, 7)])
@pytest.mark.parametrize('kernel', [(1, 1), (5, 3), (17, 13)])
@pytest.mark.parametrize('chunk', [1, 1 << 22])
def test_convolution_and_its_weight_gradient(monkeypatch, shape, kernel, chunk):
    monkeypatch.setattr(fft, '_CHUNK', chunk)
    x = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(shape[1], *kernel, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape, dtype=torch.float64)
    expected = reference.depthwise_conv2d(x, weight)
    (expected_grad,) = torch.autograd.grad(expected, weight, grad)
    torch.testing.assert_close(fft.convolve(x, weight.detach()), expected.detach())
    torch.testing.assert_close(fft.weight_grad(x, grad, kernel), expected_grad)
