import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelk_mm.backbones import SLaK
from pelk_mm.checkpoints import from_released
from pelk_mm.layers import DepthwiseConv2d

ARCH = dict(channels=(8, 8, 16, 16), depths=(1, 1, 1, 1), kernel_sizes=(31, 29, 27, 13))


@torch.no_grad()
@pytest.mark.parametrize('size', ['', '_odd', '_large'])
def test_reproduces_the_released_maps(golden, build_released, assert_reproduces, size):
    data = golden('slak51_small')
    model = build_released(data['kwargs']).eval()
    model.load_state_dict(from_released(data['state_dict'], 'slak').converted)
    assert_reproduces(model(data[f'input{size}']), data[f'outputs{size}'])


@pytest.mark.parametrize(('key', 'suffix'), [('model', ''), ('model_ema', '_ema')])
def test_reproduces_the_released_classifier(
    golden, build_released, assert_reproduces, stage_outputs, key, suffix
):
    data = golden('slak51_cls_small')
    weights = data['checkpoint'][key]
    model = build_released(data['kwargs']).eval()
    converted, dropped, unknown = from_released(weights, 'slak')
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert missing == data['downstream_missing_keys']
    assert unexpected == unknown == []
    assert list(dropped) == data['downstream_unexpected_keys']

    raw, maps = stage_outputs(model, data['input'])
    assert_reproduces(raw, data[f'stage_outputs{suffix}'])
    if key == 'model':
        assert_reproduces(maps, data['downstream_outputs'])
    norm = weights['norm.weight'], weights['norm.bias']
    pooled = F.layer_norm(raw[-1].mean((2, 3)), raw[-1].shape[1:2], *norm, eps=1e-6)
    logits = F.linear(pooled, weights['head.weight'], weights['head.bias'])
    assert_reproduces([logits], data[f'outputs{suffix}'])


@pytest.mark.parametrize(
    ('arch', 'name'), [('tiny', 't'), ('small', 's'), ('base', 'b')]
)
def test_full_size_names_and_shapes(manifest, arch, name):
    with torch.device('meta'):
        model = SLaK(arch)
    own = {k: list(v.shape) for k, v in model.state_dict().items()}
    released, summary = manifest(f'slak_{name}_downstream')
    assert from_released(released, 'slak') == (own, {}, [])
    assert sum(p.numel() for p in model.parameters()) == summary['parameters']
    assert list(model.channels) == summary['stage_channels']

    released, _ = manifest(f'slak_{name}_cls')
    converted, dropped, unknown = from_released(released, 'slak')
    output_norms = {k for k in own if k.startswith('norm')}
    assert converted == {k: v for k, v in own.items() if k not in output_norms}
    assert len(output_norms) == 8
    assert list(dropped) == ['norm.weight', 'norm.bias', 'head.weight', 'head.bias']
    assert unknown == []


def test_large_is_that_of_the_released_code():
    with torch.device('meta'):
        model = SLaK('large')
    assert model.channels == (249, 499, 998, 1996)
    assert model.depths == (3, 3, 27, 3)


def test_epsilons():
    model = SLaK(ARCH)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
        elif isinstance(module, nn.BatchNorm2d):
            assert module.eps == 1e-5


def test_two_stripes_with_biases_remain_at_deployment():
    model = SLaK(ARCH).eval()
    model.switch_to_deploy()
    for i, stage in enumerate(model.stages):
        convs = [m for m in stage.modules() if isinstance(m, DepthwiseConv2d)]
        k = ARCH['kernel_sizes'][i]
        assert [m.kernel_size for m in convs] == [(k, 5), (5, k)]
        assert all(m.bias is not None for m in convs)


@torch.no_grad()
def test_merged_dense_form_loads(randomise):
    """The released code can merge the dense form alone, not the stripes."""
    arch = dict(ARCH, decomposed=False)
    model = randomise(SLaK(arch)).eval()
    images = torch.randn(1, 3, 64, 64)
    before = model(images)
    for stage in model.stages:
        for block in stage.blocks:
            block.mixer.switch_to_deploy()
    merged = SLaK(arch, small_kernel_merged=True).eval()
    merged.load_state_dict(model.state_dict())
    for a, b in zip(before, merged(images), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_dense_form_may_have_no_small_kernel():
    model = SLaK(dict(ARCH, decomposed=False, small_kernel=None))
    assert not any('small' in name for name, _ in model.named_modules())


def test_stripes_need_a_short_side():
    with pytest.raises(ValueError, match='small_kernel None .* decomposed=False'):
        SLaK(dict(ARCH, small_kernel=None))
