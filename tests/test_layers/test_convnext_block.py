import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelk_mm.layers import ConvNeXtBlock


@pytest.mark.parametrize('scale', [0.5, 0])
def test_convnext_block(scale):
    block = ConvNeXtBlock(4, nn.Conv2d(4, 4, 3, padding=1), 0.0, scale)
    assert (block.gamma is None) == (scale == 0)
    x = torch.randn(1, 4, 5, 6)
    out = F.layer_norm(block.mixer(x).movedim(1, -1), (4,), eps=1e-6)
    out = F.gelu(block.pointwise_conv1(out), approximate='none')
    out = block.pointwise_conv2(out).movedim(-1, 1) * (scale or 1)
    torch.testing.assert_close(block(x), x + out)


@torch.no_grad()
def test_layer_scale_folds():
    block = ConvNeXtBlock(4, nn.Identity(), 0.0, 1.0)
    nn.init.normal_(block.gamma)
    nn.init.normal_(block.pointwise_conv2.bias)
    x = torch.randn(1, 4, 5, 6)
    expected = block(x)
    for _ in range(2):
        block.switch_to_deploy()
        assert block.gamma is None
        torch.testing.assert_close(block(x), expected)


def test_dropped_path_leaves_the_input():
    block = ConvNeXtBlock(4, nn.Identity(), 0.999999)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block.train()(x), x)
    assert not torch.equal(block.eval()(x), x)
