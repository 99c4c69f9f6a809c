"""Convolution by torch's Fourier transforms, in pieces of any size."""

import pytest
import torch

from pelk_mm import ops
from pelk_mm.ops import reference
from pelk_mm.ops.backends import torch_fft


@pytest.mark.parametrize('shape', [(2, 3, 9, 12), (1, 5, 20, 7)])
@pytest.mark.parametrize('kernel', [(1, 1), (5, 3), (17, 13)])
@pytest.mark.parametrize('chunk', [1, 1 << 22])
def test_convolution_and_its_weight_gradient(monkeypatch, shape, kernel, chunk):
    monkeypatch.setattr(torch_fft, '_CHUNK', chunk)
    x = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(shape[1], *kernel, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape, dtype=torch.float64)
    out = ops.depthwise_conv2d(x, weight, backend='torch_fft')
    expected = reference.depthwise_conv2d(x, weight)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out, weight, grad),
        torch.autograd.grad(expected, weight, grad),
    )
