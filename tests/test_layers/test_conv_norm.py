import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from torch import nn

from pelk_mm.layers import ConvNorm, DepthwiseConv2d, fold_norm, is_batch_norm

BN = dict(type='BN')


@torch.no_grad()
@pytest.mark.parametrize(
    'conv',
    [
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
        lambda: nn.Conv2d(4, 6, 3, padding=(0, 2), bias=False),
        lambda: nn.Conv2d(4, 6, 5, padding=2, padding_mode='reflect'),
        lambda: nn.Conv2d(4, 4, 3, padding='same', groups=4, dilation=2),
        lambda: DepthwiseConv2d(4, 7),
    ],
)
@pytest.mark.parametrize('affine', [True, False])
def test_fold_keeps_the_function_and_the_padding(conv, affine, randomise):
    whole = ConvNorm(conv(), dict(type='BN', affine=affine, eps=1e-3))
    if affine:
        randomise(whole)
    else:
        whole.norm.running_mean.normal_()
        whole.norm.running_var.uniform_(0.5, 2)
    whole.eval()
    x = torch.randn(2, 4, 9, 11)
    expected = whole(x)
    folded = whole.fold()
    assert folded is whole.conv
    torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('bias', [True, False])
def test_norm_before_a_1x1_folds_too(bias, randomise):
    conv = nn.Conv2d(4, 6, 1, stride=2, bias=bias)
    whole = randomise(ConvNorm(conv, BN, pre_norm=True)).eval()
    x = torch.randn(2, 4, 5, 5)
    expected = whole(x)
    torch.testing.assert_close(whole.fold()(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_norm_before_sees_the_convolutions_input(randomise):
    whole = randomise(ConvNorm(nn.Conv2d(4, 6, 1), BN, pre_norm=True)).eval()
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(whole(x), whole.norm(whole.conv(whole.pre_norm(x))))


@pytest.mark.parametrize(
    'conv',
    [
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 4, 1, groups=2),
        DepthwiseConv2d(4, 1),
    ],
)
def test_norm_before_another_convolution_is_refused(conv):
    with pytest.raises(ValueError, match='pre_norm needs a plain 1 x 1 convolution'):
        ConvNorm(conv, BN, pre_norm=True)


def test_no_norm():
    conv = DepthwiseConv2d(4, 3)
    whole = ConvNorm(conv, None)
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(whole(x), conv(x))
    assert list(whole.unfoldable()) == []
    assert not whole.fold().bias.any()


def test_frozen_weights_stay_frozen():
    whole = ConvNorm(nn.Conv2d(2, 2, 1), BN).requires_grad_(False)
    assert not any(p.requires_grad for p in whole.fold().parameters())


def test_half_precision_is_folded_in_float64(randomise):
    whole = randomise(ConvNorm(nn.Conv2d(4, 4, 3), BN)).bfloat16()
    exact = whole.conv.weight.double() * (
        whole.norm.weight.double()
        / (whole.norm.running_var.double() + whole.norm.eps).sqrt()
    ).view(-1, 1, 1, 1)
    assert torch.equal(whole.fold().weight, exact.bfloat16())


def test_unfoldable_norms_are_named():
    whole = ConvNorm(nn.Conv2d(2, 2, 1), BN, pre_norm=True)
    assert [name for name, _ in whole.unfoldable()] == ['pre_norm', 'norm']
    whole.norm.eval()
    assert [name for name, _ in whole.unfoldable()] == ['pre_norm']
    whole.eval()
    assert list(whole.unfoldable()) == []


@torch.no_grad()
def test_reverted_sync_batch_norm_folds(randomise):
    """What mmengine replaces SyncBN by on the CPU is of a class of its own."""
    whole = ConvNorm(nn.Conv2d(4, 6, 3), dict(type='SyncBN'))
    whole = randomise(revert_sync_batchnorm(whole)).eval()
    assert not isinstance(whole.norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
    x = torch.randn(2, 4, 5, 5)
    expected = whole(x)
    assert list(whole.unfoldable()) == []
    torch.testing.assert_close(whole.fold()(x), expected, rtol=1e-5, atol=1e-5)


def test_which_norms_are_batch_norms():
    norms = (nn.BatchNorm2d(2), nn.BatchNorm1d(2), nn.SyncBatchNorm(2))
    others = (nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.InstanceNorm2d(2), nn.Identity())
    assert all(map(is_batch_norm, norms))
    assert not any(map(is_batch_norm, others))


def test_fold_norm_refuses_other_kinds():
    with pytest.raises(TypeError, match='InstanceNorm2d cannot be folded'):
        fold_norm(torch.ones(2, 1, 3, 3), None, nn.InstanceNorm2d(2))
