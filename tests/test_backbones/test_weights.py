"""Weights that do not fit a backbone.

The message has a remedy: these tests apply it, and the weights fit.
"""

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict

from pelk_mm.checkpoints.fit import WeightsError

from .narrow_models import KINDS, SIZES, TYPES, build, weights

MERGEABLE = [kind for kind in KINDS if kind != 'pelk']
CONVNEXT_STYLE = ['pelk', 'slak', 'slak-dense']
GN, BN = dict(type='GN', num_groups=1), dict(type='BN')
DEPLOY, MERGED = dict(deploy=True), dict(small_kernel_merged=True)


def cases(kinds, name, model, given, message, remedy):
    """The same case for several backbones."""
    return [
        pytest.param(kind, model, given, message, remedy, id=f'{kind}-{name}')
        for kind in kinds
    ]


WIDE = dict(arch=dict(channels=[16, 24]))
DEEP = dict(arch=dict(depths=[1, 3]))
LARGE = dict(arch=dict(kernel_sizes=[13, 9]))
NO_SMALL, SMALL = dict(arch=dict(small_kernel=None)), dict(arch=dict(small_kernel=3))
NO_SCALE = dict(layer_scale_init_value=0)

MISFITS = [
    *cases(KINDS, 'deployed', {}, DEPLOY, 'deployment form; set deploy=True', DEPLOY),
    *cases(KINDS, 'training', DEPLOY, {}, 'remove deploy=True', dict(deploy=False)),
    *cases(MERGEABLE, 'merged', {}, MERGED, 'set small_kernel_merged=True', MERGED),
    *cases(
        MERGEABLE,
        'not-merged',
        MERGED,
        {},
        'training form; remove small_kernel_merged=True',
        dict(small_kernel_merged=False),
    ),
    *cases(
        MERGEABLE,
        'merged-only',
        DEPLOY,
        MERGED,
        'set small_kernel_merged=True instead of deploy=True',
        dict(deploy=False, small_kernel_merged=True),
    ),
    *cases(
        MERGEABLE,
        'more-than-merged',
        MERGED,
        DEPLOY,
        'set deploy=True instead of small_kernel_merged=True',
        dict(deploy=True, small_kernel_merged=False),
    ),
    *cases(
        KINDS,
        'wide',
        {},
        WIDE,
        r'channels \[16, 24\], the backbone \[8, 16\]; set arch to that of the config',
        WIDE,
    ),
    *cases(KINDS, 'deep', {}, DEEP, r'depths \[1, 3\], the backbone \[1, 2\]', DEEP),
    *cases(
        KINDS,
        'shallow',
        DEEP,
        {},
        r'depths \[1, 2\], the backbone \[1, 3\]',
        dict(arch=SIZES),
    ),
    *cases(
        KINDS,
        'large',
        {},
        LARGE,
        r'kernel_sizes \[13, 9\], the backbone \[11, 9\]',
        LARGE,
    ),
    *cases(
        ['pelk', 'slak-dense', 'replknet'],
        'without-small',
        SMALL,
        NO_SMALL,
        'no small kernels; set small_kernel=None',
        NO_SMALL,
    ),
    *cases(
        ['pelk', 'slak-dense', 'replknet'],
        'with-small',
        NO_SMALL,
        SMALL,
        'small kernels; set small_kernel to their size',
        SMALL,
    ),
    *cases(
        CONVNEXT_STYLE,
        'without-scale',
        {},
        NO_SCALE,
        'no layer scales; set layer_scale_init_value=0',
        NO_SCALE,
    ),
    *cases(
        CONVNEXT_STYLE,
        'with-scale',
        NO_SCALE,
        {},
        'has layer scales; set layer_scale_init_value=1e-6',
        dict(layer_scale_init_value=1e-6),
    ),
    *cases(
        KINDS,
        'batch-norm',
        dict(norm_cfg=GN),
        dict(norm_cfg=BN),
        r"BatchNorms; set norm_cfg=dict\(type='BN'\)",
        dict(norm_cfg=BN),
    ),
    *cases(
        KINDS,
        'group-norm',
        dict(norm_cfg=BN),
        dict(norm_cfg=GN),
        'no running statistics and are no BatchNorms; set norm_cfg',
        dict(norm_cfg=GN),
    ),
    *cases(
        CONVNEXT_STYLE,
        'no-norm',
        dict(norm_cfg=BN),
        dict(norm_cfg=None),
        'no norms after its convolutions; set norm_cfg=None',
        dict(norm_cfg=None),
    ),
    *cases(
        CONVNEXT_STYLE,
        'norm',
        dict(norm_cfg=None),
        dict(norm_cfg=BN),
        'has norms after its convolutions; set their norm_cfg',
        dict(norm_cfg=BN),
    ),
    *cases(
        ['slak'],
        'dense',
        {},
        dict(arch=dict(decomposed=False)),
        'kernels are dense; set decomposed=False',
        dict(arch=dict(decomposed=False)),
    ),
    *cases(
        ['slak-dense'],
        'stripes',
        {},
        dict(arch=dict(decomposed=True)),
        'stripes; remove decomposed=False',
        dict(arch=dict(decomposed=True)),
    ),
    *cases(
        ['replknet'],
        'ratio',
        {},
        dict(arch=dict(ffn_ratio=2)),
        'build the backbone with the arch of the config',
        dict(arch=dict(ffn_ratio=2)),
    ),
]


@pytest.mark.parametrize(('kind', 'model', 'given', 'message', 'remedy'), MISFITS)
def test_misfit_has_a_cause_and_its_remedy_works(kind, model, given, message, remedy):
    state = weights(kind, **given)
    with pytest.raises(WeightsError, match=message) as error:
        load_state_dict(build(kind, **model), state)
    assert len(str(error.value)) < 700  # not a line per tensor
    assert 'partial_weights=True' in str(error.value)
    load_state_dict(build(kind, **{**model, **remedy}), state)


@pytest.mark.parametrize(
    ('kind', 'given'),
    [
        (kind, given)
        for kind in KINDS[:4]
        for given in KINDS[:4]
        if TYPES[kind]['type'] != TYPES[given]['type']
    ],
)
@pytest.mark.parametrize('form', [{}, DEPLOY])
def test_another_family(kind, given, form):
    message = f'it is of a {TYPES[given]["type"]}; give one of a {TYPES[kind]["type"]}'
    if kind == 'pelk':
        message += ' or start from it with `pelk-mm .* --warm-start pelk`'
    with pytest.raises(WeightsError, match=message):
        load_state_dict(build(kind), weights(given, **form))


@pytest.mark.parametrize('kind', CONVNEXT_STYLE)
def test_names_of_another_network_in_such_stages(kind):
    convnext = {
        'downsample_layers.0.0.weight': torch.zeros(8, 3, 4, 4),
        'stages.0.0.depthwise_conv.weight': torch.zeros(8, 1, 7, 7),
    }
    with pytest.raises(WeightsError, match='stages are not those of PeLK, SLaK, RepL'):
        load_state_dict(build(kind), convnext)


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base', 'tiny-101'])
def test_named_architecture_is_named(arch):
    kind = dict(type='PeLK', arch=arch)
    with torch.device('meta'):
        state = MODELS.build(kind).state_dict()
        other = MODELS.build(kind | dict(arch='small-101'))
    with pytest.raises(WeightsError, match=rf"set arch to '{arch}' \("):
        load_state_dict(other, state)
