"""Gradients in the strides of the parameters, which DDP compares."""

import contextlib
import warnings

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pelk_mm import ops
from pelk_mm.backbones import PeLK, RepLKNet, SLaK

SIZES = dict(channels=(8, 12), depths=(1, 1), kernel_sizes=(15, 7))
PELK = dict(SIZES, central_radius=1)
BN = dict(type='BN')
BACKBONES = {
    'pelk': lambda **kw: PeLK(PELK, **kw),
    'pelk-small': lambda **kw: PeLK(dict(PELK, small_kernel=5), BN, **kw),
    'slak': lambda **kw: SLaK(SIZES, **kw),
    'slak-dense': lambda **kw: SLaK(dict(SIZES, decomposed=False), **kw),
    'replknet': lambda **kw: RepLKNet(SIZES, **kw),
    'replknet-xl': lambda **kw: RepLKNet(
        dict(SIZES, small_kernel=None, dw_ratio=1.5),
        norm_intermediate_features=True,
        **kw,
    ),
}


@pytest.fixture(params=BACKBONES)
def model(request):
    model = BACKBONES[request.param](out_indices=(0, 1)).train()
    return model.to(memory_format=torch.channels_last)


def learn(model, images):
    sum(m.float().square().sum() for m in model(images)).backward()


@pytest.mark.parametrize('plain', [False, True])
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_strides_of_a_channels_last_model(model, layout, autocast, plain):
    images = torch.randn(2, 3, 48, 64).contiguous(memory_format=layout)
    switch = ops.plain() if plain else contextlib.nullcontext()
    with switch, torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        learn(model, images)
    assert any(p.dim() == 4 and p.stride(1) == 1 for p in model.parameters())
    assert {n: p.grad.stride() for n, p in model.named_parameters()} == {
        n: p.stride() for n, p in model.named_parameters()
    }


@pytest.mark.parametrize('kind', BACKBONES)
def test_strides_of_a_contiguous_model_and_of_the_deployed_form(kind):
    model = BACKBONES[kind](out_indices=(0, 1), deploy=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=layout).zero_grad()
        learn(model, torch.randn(2, 3, 48, 64))
        for name, parameter in model.named_parameters():
            assert parameter.grad.stride() == parameter.stride(), name


class Squeezed(nn.Module):
    """What the warning is about: a view that forgets a stride."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 1, 7, 7))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return (ops.depthwise_conv2d(x, self.weight.squeeze(1), self.bias),)


@pytest.fixture(scope='module')
def _one_rank():
    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)
    torch.distributed.destroy_process_group()


def warns_of_strides(model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        wrapped = DistributedDataParallel(model)
        for _ in range(2):
            wrapped.zero_grad()
            learn(wrapped, torch.randn(2, 3, 48, 64))
    return any('strides do not match' in str(w.message) for w in caught)


@pytest.mark.usefixtures('_one_rank')
def test_ddp_has_nothing_to_warn_of(model):
    assert not warns_of_strides(model)


@pytest.mark.usefixtures('_one_rank')
def test_ddp_would_warn():
    assert warns_of_strides(Squeezed().to(memory_format=torch.channels_last))
