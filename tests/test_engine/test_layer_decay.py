import pytest
import torch
from mmengine.optim import DefaultOptimWrapperConstructor, build_optim_wrapper
from torch import nn

from pelk_mm.backbones import PeLK, RepLKNet, SLaK
from pelk_mm.engine import LargeKernelLayerDecayOptimizerConstructor, layer_decay

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
    with torch.device('meta'):
        backbone = PeLK(arch)
    layers, total = backbone.get_layer_depth('decode_head.weight', 'backbone.')
    assert (layers, total) == (last, last + 1)


def test_every_trainable_parameter_is_in_one_group():
    model = Segmenter(PeLK(ARCH, frozen_stages=1))
    model.train()
    groups = groups_of(model, decay_rate=0.9, decay_type='layer_wise')
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(groups) == trainable
    assert 'backbone.downsample_layers.0.0.weight' not in groups


@pytest.mark.parametrize(
    ('paramwise_cfg', 'message'),
    [
        (dict(), 'decay_rate=None .* must be a number in'),
        (dict(decay_rate=1.5), 'decay_rate=1.5 .* must be a number in'),
        (dict(decay_rate=True), 'decay_rate=True .* must be a number in'),
        (dict(decay_rate='0.9'), "decay_rate='0.9' .* must be a number in"),
        (
            dict(decay_rate=0.9, decay_type='block_wise'),
            "decay_type='block_wise' .* must be layer_wise or stage_wise",
        ),
        (dict(decay_rate=0.9, num_layers=0), 'num_layers=0 .* leave it out'),
        (dict(decay_rate=0.9, num_layers='6'), "num_layers='6' .* leave it out"),
        (
            dict(layer_decay_rate=0.9),
            'layer_decay_rate=0.9 .* is unknown; did you mean decay_rate',
        ),
        (
            dict(decay_rate=0.9, norm_decay=0.0),
            'norm_decay=0.0 .* is unknown; did you mean norm_decay_mult',
        ),
        (dict(decay_rate=0.9, xyz=1), 'xyz=1 .* it takes decay_rate, decay_type'),
        (dict(decay_rate=0.9, norm_decay_mult='0'), "norm_decay_mult='0' .* a number"),
        (
            dict(decay_rate=0.9, custom_keys=['norm']),
            r"custom_keys=\['norm'\] .* a dict",
        ),
        (
            dict(decay_rate=0.9, custom_keys=dict(norm=0.0)),
            r"custom_keys\['norm'\]=0.0 .* must be a dict such as",
        ),
        (
            dict(decay_rate=0.9, custom_keys=dict(norm=dict(decay_mult=None))),
            r"custom_keys\['norm'\].decay_mult=None .* must be a number",
        ),
    ],
)
def test_refused_key_is_named_with_a_remedy(paramwise_cfg, message):
    with pytest.raises(ValueError, match=message):
        groups_of(Segmenter(nn.Identity()), **paramwise_cfg)


@pytest.mark.parametrize(
    ('optimizer', 'paramwise_cfg', 'message'),
    [
        (dict(), {}, 'has no lr to scale; set optim_wrapper.optimizer.lr'),
        (
            dict(lr=1.0),
            dict(norm_decay_mult=0.0),
            'norm_decay_mult=0.0 .* set optim_wrapper.optimizer.weight_decay',
        ),
        (
            dict(lr=1.0),
            dict(custom_keys=dict(norm=dict(decay_mult=0.5))),
            r"custom_keys\['norm'\].decay_mult=0.5 .*optimizer.weight_decay",
        ),
    ],
)
def test_optimizer_lacks_what_is_multiplied(optimizer, paramwise_cfg, message):
    with pytest.raises(ValueError, match=message):
        LargeKernelLayerDecayOptimizerConstructor(
            dict(optimizer=dict(type='AdamW', **optimizer)),
            dict(decay_rate=0.9, **paramwise_cfg),
        )


def test_paramwise_cfg_is_a_dict():
    with pytest.raises(TypeError, match='paramwise_cfg 0.9 .* must be a dict'):
        LargeKernelLayerDecayOptimizerConstructor(
            dict(optimizer=dict(type='AdamW', lr=1.0)), 0.9
        )


def test_foreign_backbone_is_named():
    with pytest.raises(TypeError, match='backbone Conv2d has none. Leave constructor'):
        groups_of(
            Segmenter(nn.Conv2d(3, 4, 1)), decay_rate=0.9, decay_type='layer_wise'
        )


#: Keys of mmengine's own constructor, of every kind.
MMENGINE = dict(
    custom_keys={
        'backbone': dict(lr_mult=0.5, decay_mult=0.25),
        # Longer, so it has priority.
        'stages.2.blocks': dict(decay_mult=0.0),
        'decode_head.weight': dict(lr_mult=10.0),
    },
    bias_lr_mult=2.0,
    bias_decay_mult=0.5,
    norm_decay_mult=0.125,
    flat_decay_mult=0.75,
)


@pytest.mark.long
@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
@pytest.mark.parametrize(
    'keys', [MMENGINE, {k: v for k, v in MMENGINE.items() if k != 'custom_keys'}]
)
@pytest.mark.parametrize('kind', [PeLK, SLaK, RepLKNet])
def test_rules_are_those_of_mmengine(kind, keys, decay_type):
    """The same rates and decays, times the layer's scale."""
    arch = {k: v for k, v in ARCH.items() if k != 'central_radius' or kind is PeLK}
    model = Detector(kind(arch))
    expected = {}
    DefaultOptimWrapperConstructor(
        dict(optimizer=dict(type='SGD', lr=1.0, weight_decay=0.05)), keys
    ).add_params(singles := [], model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    expected = {names[group['params'][0]]: group for group in singles}
    plain = groups_of(model, decay_rate=0.5, decay_type=decay_type)
    groups = groups_of(model, decay_rate=0.5, decay_type=decay_type, **keys)
    assert groups.keys() == expected.keys() == plain.keys()
    for name, group in groups.items():
        rule = expected[name]
        assert group['lr_scale'] == plain[name]['lr_scale']
        assert group['lr'] == group['lr_scale'] * rule.get('lr', 1.0), name
        # Of what mmengine has no rule for, the positional embedding does not decay.
        default = 0.0 if name.endswith('position_embedding') else 0.05
        assert group['weight_decay'] == rule.get('weight_decay', default), name


@pytest.mark.parametrize('kind', [PeLK, SLaK])
def test_depthwise_multiplier_is_for_our_convolutions_too(kind):
    arch = {k: v for k, v in ARCH.items() if k != 'central_radius' or kind is PeLK}
    model = Segmenter(kind(arch))
    model.head = nn.Conv2d(8, 8, 3, groups=8)
    groups = groups_of(model, decay_rate=0.5, dwconv_decay_mult=0.5)
    of_mixers = {n for n in groups if n.endswith('conv.weight') and '.mixer.' in n}
    assert len(of_mixers) >= 10
    for name, group in groups.items():
        depthwise = name in of_mixers or name.startswith('head.')
        decayed = model.get_parameter(name).ndim > 1 and 'position' not in name
        assert group['weight_decay'] == (
            0.025 if depthwise else 0.05 if decayed else 0.0
        ), name


def test_one_multiplier_leaves_the_other_rules_alone():
    groups = groups_of(Segmenter(PeLK(ARCH)), decay_rate=0.5, norm_decay_mult=1.0)
    assert groups['backbone.norm3.weight']['weight_decay'] == 0.05
    assert groups['backbone.norm3.bias']['weight_decay'] == 0.05
    assert groups['decode_head.bias']['weight_decay'] == 0.0
    assert groups['backbone.stages.0.blocks.0.gamma']['weight_decay'] == 0.0


class Wrapped(nn.Module):
    """A model whose parts have the given names, as ``student.backbone``."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


@pytest.mark.parametrize('name', ['img_backbone', 'student.backbone', ''])
def test_backbone_anywhere(name):
    backbone = PeLK(ARCH)
    model = {
        'img_backbone': lambda: Wrapped(img_backbone=backbone, neck=nn.Linear(2, 2)),
        'student.backbone': lambda: Wrapped(student=Segmenter(backbone)),
        '': lambda: backbone,
    }[name]()
    expected = groups_of(Wrapped(backbone=backbone), decay_rate=0.5)
    prefix = f'{name}.' if name else ''
    groups = groups_of(model, decay_rate=0.5)
    assert len(groups) == len(list(model.parameters()))
    for parameter, group in groups.items():
        if parameter.startswith(prefix):
            same = expected[f'backbone.{parameter.removeprefix(prefix)}']
            for key in ('lr', 'weight_decay', 'group_name'):
                assert group[key] == same[key]
        else:
            assert group['lr'] == 1.0


def test_two_backbones_of_different_depth_and_a_frozen_teacher():
    deep = {**ARCH, 'depths': [1, 1, 13, 1]}
    teacher = Segmenter(PeLK(ARCH)).requires_grad_(False)
    model = Wrapped(
        rgb=Wrapped(backbone=PeLK(ARCH)),
        depth_backbone=PeLK(deep),
        teacher=teacher,
        head=nn.Linear(2, 2),
    )
    groups = groups_of(model, decay_rate=0.5)
    stem = 'downsample_layers.0.0.weight'
    assert groups[f'rgb.backbone.{stem}']['lr'] == 0.5**7
    assert groups[f'depth_backbone.{stem}']['lr'] == 0.5**9
    assert groups[f'rgb.backbone.{stem}']['group_name'] == 'rgb.backbone.layer_0_decay'
    assert groups['head.weight']['lr'] == 1.0
    assert not any(name.startswith('teacher.') for name in groups)


@pytest.mark.parametrize('bypass', [{}, dict(bypass_duplicate=True)])
def test_shared_parameter_is_in_one_group(bypass):
    model = Segmenter(PeLK(ARCH))
    model.second_head = model.decode_head
    groups = groups_of(model, decay_rate=0.5, **bypass)
    assert {'decode_head.weight', 'decode_head.bias'} <= groups.keys()
    assert not any(name.startswith('second_head') for name in groups)


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(layer_decay, 'print_log', lambda line, **_: lines.append(line))
    return lines


def test_num_layers_is_explained_where_it_differs(log):
    groups = groups_of(Segmenter(PeLK(ARCH)), decay_rate=0.5)
    assert groups_of(Segmenter(PeLK(ARCH)), decay_rate=0.5, num_layers=6).keys() == (
        groups.keys()
    )
    assert not any('num_layers' in line for line in log)
    other = groups_of(Segmenter(PeLK(ARCH)), decay_rate=0.5, num_layers=12)
    (line,) = (line for line in log if 'num_layers' in line)
    assert 'num_layers=12 has no effect: backbone has 8 layers' in line
    assert line.endswith('num_layers=6')
    assert [g['lr'] for g in other.values()] == [g['lr'] for g in groups.values()]


def test_custom_key_without_a_parameter_is_reported(log):
    keys = dict(absolute_pos_embed=dict(decay_mult=0.0), gamma=dict(lr_mult=2.0))
    groups = groups_of(Segmenter(PeLK(ARCH)), decay_rate=0.5, custom_keys=keys)
    (line,) = (line for line in log if 'no trainable parameter' in line)
    assert 'absolute_pos_embed' in line
    group = groups['backbone.stages.3.blocks.0.gamma']
    assert group['group_name'] == 'layer_6_decay_gamma'
    assert group['lr'] == 2 * 0.5
