import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from pelk_mm.backbones import PeLK

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
