import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelk_mm.layers import ConvFFN, RepLKBlock

BN = dict(type='BN')


def replk_block(*args, **kwargs):
    channels, *others = args
    return RepLKBlock(channels, nn.Identity(), *others, **kwargs)


@torch.no_grad()
def test_replk_block(randomise):
    mixer = nn.Conv2d(6, 6, 3, padding=1)
    block = randomise(RepLKBlock(4, mixer, 6, BN)).eval()
    x = torch.randn(1, 4, 5, 6)
    first, last = block.pointwise_conv1, block.pointwise_conv2
    out = F.relu(first.norm(first.conv(first.pre_norm(x))))
    out = last.norm(last.conv(F.relu(mixer(out))))
    torch.testing.assert_close(block(x), x + out)


@torch.no_grad()
def test_conv_ffn_has_the_exact_gelu(randomise):
    block = randomise(ConvFFN(4, 16, BN)).eval()
    x = torch.randn(1, 4, 5, 6)
    hidden = F.gelu(block.pointwise_conv1(x), approximate='none')
    assert hidden.shape[1] == 16
    torch.testing.assert_close(block(x), x + block.pointwise_conv2(hidden))


@pytest.mark.parametrize('make', [ConvFFN, replk_block])
def test_dropped_path_leaves_the_input(make):
    block = make(4, 8, BN, 0.999999)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block.train()(x), x)
    assert not torch.equal(block.eval()(x), x)


@pytest.mark.parametrize('make', [ConvFFN, replk_block])
def test_deployment_form_has_biases_and_no_norm(make):
    block = make(4, 8, BN, deploy=True)
    for conv in (block.pointwise_conv1, block.pointwise_conv2):
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
