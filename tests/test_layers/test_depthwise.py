import pytest
import torch
import torch.nn.functional as F

from pelk_mm.layers import DepthwiseConv2d, add_centred
from pelk_mm.layers.depthwise import kernels_of


@pytest.mark.parametrize('kernel', [7, (9, 3), (3, 9), 1])
@pytest.mark.parametrize('size', [(12, 15), (3, 2)])
def test_pads_each_axis_by_half_its_kernel(kernel, size):
    conv = DepthwiseConv2d(4, kernel, bias=True)
    torch.nn.init.normal_(conv.bias)
    kh, kw = conv.kernel_size
    x = torch.randn(2, 4, *size)
    expected = F.conv2d(x, conv.weight, conv.bias, padding=(kh // 2, kw // 2), groups=4)
    assert expected.shape == x.shape
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('size', [(7, 7), (9, 3), (3, 1), (1, 1)])
def test_kernels_are_a_view_with_gradients_in_the_strides_of_the_weight(size, layout):
    weight = torch.randn(4, 1, *size).to(memory_format=layout).requires_grad_()
    kernels = kernels_of(weight)
    assert kernels.data_ptr() == weight.data_ptr()
    assert torch.equal(kernels, weight[:, 0])
    kernels.square().sum().backward()
    assert weight.grad.stride() == weight.stride()
    assert torch.equal(weight.grad, 2 * weight)


def test_gradients():
    conv = DepthwiseConv2d(2, (5, 3), bias=True).double()
    x = torch.randn(1, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    values = (conv.weight, conv.bias)

    def convolve(x, weight, bias):
        return torch.func.functional_call(conv, dict(weight=weight, bias=bias), (x,))

    assert torch.autograd.gradcheck(convolve, (x, *values))


@pytest.mark.parametrize('kernel', [4, (3, 4), 0, (2.5, 3)])
def test_bad_kernel_size(kernel):
    with pytest.raises(ValueError, match='is not a positive odd integer'):
        DepthwiseConv2d(2, kernel)


def test_absorbs_what_is_no_larger_along_either_axis():
    conv = DepthwiseConv2d(1, (9, 5))
    assert conv.absorbs((5, 5))
    assert conv.absorbs((9, 5))
    assert not conv.absorbs((5, 9))
    assert not conv.absorbs((11, 1))


def test_centred_sum_equals_the_sum_of_convolutions():
    large, small = torch.randn(3, 1, 9, 5), torch.randn(3, 1, 3, 5)
    x = torch.randn(1, 3, 7, 7)
    merged = F.conv2d(x, add_centred(large, small), padding=(4, 2), groups=3)
    apart = F.conv2d(x, large, padding=(4, 2), groups=3)
    apart = apart + F.conv2d(x, small, padding=(1, 2), groups=3)
    torch.testing.assert_close(merged, apart)
