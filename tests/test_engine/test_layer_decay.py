import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from pelk_mm.backbones import PeLK, RepLKNet, SLaK

ARCH = dict(
    channels=[16, 24, 32, 40],
    depths=[1, 1, 7, 1],
    kernel_sizes=[13, 13, 13, 13],
    central_radius=2,
)


class Segmenter(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.decode_head = nn.Conv2d(40, 2, 1)


def groups_of(model, **paramwise_cfg):
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
            constructor='LargeKernelLayerDecayOptimizerConstructor',
            paramwise_cfg=paramwise_cfg,
        ),
    )
    return {
        name: group
        for group in wrapper.optimizer.param_groups
        for name in group['param_names']
    }


@pytest.mark.parametrize(
    ('name', 'layer', 'stage'),
    [
        ('backbone.downsample_layers.0.0.weight', 0, 0),
        ('backbone.stages.0.position_embedding', 1, 1),
        ('backbone.stages.0.blocks.0.gamma', 1, 1),
        ('backbone.downsample_layers.1.1.weight', 2, 0),
        ('backbone.stages.1.blocks.0.mixer.large.conv.weight', 2, 2),
        ('backbone.downsample_layers.2.0.bias', 3, 0),
        ('backbone.stages.2.blocks.2.norm.weight', 3, 3),
        ('backbone.stages.2.blocks.3.pointwise_conv1.weight', 4, 3),
        ('backbone.stages.2.blocks.6.pointwise_conv1.bias', 5, 3),
        ('backbone.stages.3.blocks.0.pointwise_conv2.weight', 6, 4),
        ('backbone.norm3.weight', 7, 7),
        ('decode_head.weight', 7, 7),
        ('decode_head.bias', 7, 7),
    ],
)
def test_rate_and_decay_of_every_kind_of_parameter(name, layer, stage):
    model = Segmenter(PeLK(ARCH))
    decayed = name.endswith('conv.weight') or name.split('.')[-2:] in (
        ['0', 'weight'],
        ['1', 'weight'],
        ['pointwise_conv1', 'weight'],
        ['pointwise_conv2', 'weight'],
        ['decode_head', 'weight'],
    )
    for decay_type, depth in (('layer_wise', layer), ('stage_wise', stage)):
        group = groups_of(model, decay_rate=0.5, decay_type=decay_type)[name]
        assert group['lr'] == 0.5 ** (7 - depth)
        assert group['weight_decay'] == (0.05 if decayed else 0.0)


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Conv2d(40, 8, 1)
        self.rpn_head = nn.ModuleDict(dict(norm=nn.GroupNorm(2, 8)))
        self.roi_head = nn.ModuleDict(dict(fc=nn.Linear(8, 2)))


HEADS = {
    'neck.weight': (True, None, None),
    'neck.bias': (False, None, None),
    'rpn_head.norm.weight': (False, None, None),
    'rpn_head.norm.bias': (False, None, None),
    'roi_head.fc.weight': (True, None, None),
    'roi_head.fc.bias': (False, None, None),
}
SLAK = {  # whether decayed, layer, stage; None for the last
    'downsample_layers.0.0.weight': (True, 0, 0),
    'downsample_layers.0.0.bias': (False, 0, 0),
    'downsample_layers.0.1.weight': (False, 0, 0),
    'downsample_layers.1.0.weight': (False, 2, 0),
    'downsample_layers.3.1.weight': (True, 6, 0),
    'stages.0.blocks.0.mixer.vertical.conv.weight': (True, 1, 1),
    'stages.0.blocks.0.mixer.vertical.norm.weight': (False, 1, 1),
    'stages.0.blocks.0.mixer.horizontal.norm.bias': (False, 1, 1),
    'stages.1.blocks.0.mixer.small.conv.weight': (True, 2, 2),
    'stages.1.blocks.0.norm.weight': (False, 2, 2),
    'stages.2.blocks.2.pointwise_conv1.weight': (True, 3, 3),
    'stages.2.blocks.3.pointwise_conv1.bias': (False, 4, 3),
    'stages.2.blocks.6.gamma': (False, 5, 3),
    'stages.3.blocks.0.pointwise_conv2.weight': (True, 6, 4),
    'norm0.weight': (False, None, None),
    'norm3.bias': (False, None, None),
}
# A layer is a large-kernel block and an FFN: blocks 0 to 5 of a stage are one layer.
REPLKNET = {
    'downsample_layers.0.0.conv.weight': (True, 0, 0),
    'downsample_layers.0.3.norm.weight': (False, 0, 0),
    'downsample_layers.1.0.conv.weight': (True, 2, 0),
    'downsample_layers.3.1.norm.bias': (False, 6, 0),
    'stages.0.blocks.0.mixer.large.conv.weight': (True, 1, 1),
    'stages.0.blocks.0.mixer.small.norm.weight': (False, 1, 1),
    'stages.0.blocks.1.pointwise_conv2.conv.weight': (True, 1, 1),
    'stages.1.blocks.0.pointwise_conv1.pre_norm.weight': (False, 2, 2),
    'stages.2.blocks.5.pointwise_conv1.conv.weight': (True, 3, 3),
    'stages.2.blocks.6.pointwise_conv1.conv.weight': (True, 4, 3),
    'stages.2.blocks.11.pointwise_conv1.norm.bias': (False, 4, 3),
    'stages.2.blocks.13.pointwise_conv2.conv.weight': (True, 5, 3),
    'stages.3.blocks.1.pointwise_conv2.conv.weight': (True, 6, 4),
    'norm1.weight': (False, None, None),
}


@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
@pytest.mark.parametrize(
    ('kind', 'options', 'expected'),
    [
        (SLaK, {}, SLAK),
        (RepLKNet, dict(norm_intermediate_features=True), REPLKNET),
    ],
    ids=['SLaK', 'RepLKNet'],
)
def test_other_backbones_in_a_detector(kind, options, expected, decay_type):
    arch = {key: value for key, value in ARCH.items() if key != 'central_radius'}
    model = Detector(kind(arch, **options))
    groups = groups_of(model, decay_rate=0.5, decay_type=decay_type)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    expected = {f'backbone.{name}': value for name, value in expected.items()} | HEADS
    for name, (decayed, *depths) in expected.items():
        depth = depths[decay_type == 'stage_wise']
        exponent = 0 if depth is None else 7 - depth
        assert groups[name]['lr'] == 0.5**exponent, name
        assert groups[name]['weight_decay'] == (0.05 if decayed else 0.0), name
    for name, group in groups.items():
        vector = model.get_parameter(name).ndim == 1
        assert group['weight_decay'] == (0.0 if vector else 0.05), name


@pytest.mark.parametrize(
    ('arch', 'last'), [('tiny', 7), ('small', 13), ('base-101', 13)]
)
def test_layer_count_is_that_of_the_released_recipes(arch, last):
    layers, total = PeLK(arch).get_layer_depth('decode_head.weight', 'backbone.')
    assert (layers, total) == (last, last + 1)


def test_every_trainable_parameter_is_in_one_group():
    model = Segmenter(PeLK(ARCH, frozen_stages=1))
    model.train()
    groups = groups_of(model, decay_rate=0.9, decay_type='layer_wise')
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(groups) == trainable
    assert 'backbone.downsample_layers.0.0.weight' not in groups


@pytest.mark.parametrize(
    'paramwise_cfg',
    [
        dict(),
        dict(decay_rate=0.9),
        dict(decay_rate=1.5, decay_type='layer_wise'),
        dict(decay_rate=0.9, decay_type='block_wise'),
        dict(decay_rate=0.9, decay_type='layer_wise', num_layers=6),
    ],
)
def test_bad_paramwise_cfg(paramwise_cfg):
    with pytest.raises(ValueError, match='needs exactly decay_rate'):
        groups_of(Segmenter(PeLK(ARCH)), **paramwise_cfg)


def test_foreign_backbone_is_named():
    with pytest.raises(TypeError, match='backbone Conv2d has none'):
        groups_of(
            Segmenter(nn.Conv2d(3, 4, 1)), decay_rate=0.9, decay_type='layer_wise'
        )
