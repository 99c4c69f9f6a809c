import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelk_mm.backbones import RepLKNet
from pelk_mm.checkpoints import from_released

ARCH = dict(channels=(8, 8, 16, 16), depths=(1, 1, 1, 1), kernel_sizes=(15, 13, 11, 7))


@torch.no_grad()
@pytest.mark.parametrize('size', ['', '_odd', '_large'])
def test_reproduces_the_released_maps(golden, build_released, assert_reproduces, size):
    data = golden('replknet31_small')
    model = build_released(data['kwargs']).eval()
    model.load_state_dict(from_released(data['state_dict'], 'replknet').converted)
    assert_reproduces(model(data[f'input{size}']), data[f'outputs{size}'])


def test_reproduces_the_released_classifier(
    golden, build_released, assert_reproduces, stage_outputs
):
    data = golden('replknet31_cls_small')
    weights = data['checkpoint']['model']
    model = build_released(data['kwargs']).eval()
    converted, dropped, unknown = from_released(weights, 'replknet')
    model.load_state_dict(converted)
    assert unknown == []
    assert list(dropped) == data['downstream_unexpected_keys']

    raw, maps = stage_outputs(model, data['input'])
    assert_reproduces(raw, data['stage_outputs'])
    assert_reproduces(maps, data['downstream_outputs'])
    norm = (
        weights[f'norm.{name}']
        for name in ('running_mean', 'running_var', 'weight', 'bias')
    )
    pooled = F.batch_norm(raw[-1], *norm, eps=1e-5).mean((2, 3))
    logits = F.linear(pooled, weights['head.weight'], weights['head.bias'])
    assert_reproduces([logits], data['outputs'])


@pytest.mark.parametrize('form', ['downstream', 'cls'])
@pytest.mark.parametrize('arch', ['31B', '31L', 'XL'])
def test_full_size_names_and_shapes(manifest, arch, form):
    released, summary = manifest(f'replknet{arch.lower()}_{form}')
    norm = arch == 'XL' and form == 'downstream'
    with torch.device('meta'):
        model = RepLKNet(arch, norm_intermediate_features=norm)
    converted, dropped, unknown = from_released(released, 'replknet')
    assert converted == {k: list(v.shape) for k, v in model.state_dict().items()}
    assert {name.split('.')[0] for name in dropped} == (
        {'norm', 'head'} if form == 'cls' else set()
    )
    assert unknown == []
    classifier = (
        0 if form == 'downstream' else model.channels[3] * 2 + model.channels[3] * 1000
    )
    own = sum(p.numel() for p in model.parameters())
    assert own + classifier + 1000 * bool(classifier) == summary['parameters']


@torch.no_grad()
def test_merged_released_models_load(golden, build_released, assert_reproduces):
    """What the released code's own merging of the golden weights gives."""
    data = golden('replknet31_small')
    merged = {}
    for name, value in data['state_dict'].items():
        if '.lkb_origin.conv.weight' in name:
            stem = name.removesuffix('lkb_origin.conv.weight')
            kernel, bias = 0, 0
            for branch in ('lkb_origin', 'small_conv'):
                get = {
                    k.removeprefix(f'{stem}{branch}.'): v.double()
                    for k, v in data['state_dict'].items()
                    if k.startswith(f'{stem}{branch}.')
                }
                scale = get['bn.weight'] / (get['bn.running_var'] + 1e-5).sqrt()
                small = get['conv.weight'] * scale.view(-1, 1, 1, 1)
                pad = (value.shape[-1] - small.shape[-1]) // 2
                kernel = kernel + F.pad(small, [pad] * 4)
                bias = bias + get['bn.bias'] - get['bn.running_mean'] * scale
            merged[f'{stem}lkb_reparam.weight'] = kernel.float()
            merged[f'{stem}lkb_reparam.bias'] = bias.float()
        elif '.large_kernel.' not in name:
            merged[name] = value
    model = build_released(data['kwargs'], small_kernel_merged=True).eval()
    converted, dropped, unknown = from_released(merged, 'replknet')
    assert (dropped, unknown) == ({}, [])
    model.load_state_dict(converted)
    assert_reproduces(model(data['input']), data['outputs'])
    model.switch_to_deploy()
    assert_reproduces(model(data['input']), data['outputs'])
    deployed = build_released(data['kwargs'], deploy=True)
    deployed.load_state_dict(model.state_dict())


def test_output_norms_only_where_asked():
    assert not hasattr(RepLKNet(ARCH), 'norm0')
    model = RepLKNet(ARCH, norm_intermediate_features=True, out_indices=(1, 3))
    norms = [name for name, _ in model.named_children() if name.startswith('norm')]
    assert norms == ['norm1', 'norm3']


def test_norms_of_the_released_model():
    norms = [m for m in RepLKNet(ARCH).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-5}


def test_ratios():
    block, ffn = RepLKNet(dict(ARCH, dw_ratio=1.5, ffn_ratio=2)).stages[0].blocks
    assert block.mixer.large.conv.channels == 12
    assert ffn.pointwise_conv1.conv.out_channels == 16


def test_default_initialisation_is_that_of_torch():
    model = RepLKNet(dict(ARCH, channels=(64,) * 4, kernel_sizes=(31,) * 4))
    model.init_weights()
    weight = model.stages[0].blocks[0].mixer.large.conv.weight
    assert weight.abs().max() <= 1 / 31
    assert weight.std().item() == pytest.approx(1 / 31 / 3**0.5, rel=0.02)


def test_smallest_images():
    assert RepLKNet(ARCH).eval()(torch.randn(1, 3, 1, 1))[3].shape == (1, 16, 1, 1)
