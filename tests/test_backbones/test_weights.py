"""What a backbone accepts as weights, whoever loads them.

Where a checkpoint does not fit, the message has a remedy: these tests apply it, and the
checkpoint fits.
"""

import pickle
from copy import deepcopy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

import pelk_mm  # noqa: F401
from pelk_mm.checkpoints.fit import WeightsError

SIZES = dict(channels=[8, 16], depths=[1, 2], kernel_sizes=[11, 9])
TYPES = {
    'pelk': dict(type='PeLK', arch=dict(SIZES, central_radius=2)),
    'slak': dict(type='SLaK', arch=SIZES),
    'slak-dense': dict(type='SLaK', arch=dict(SIZES, decomposed=False)),
    'replknet': dict(type='RepLKNet', arch=SIZES),
    'replknet-xl': dict(
        type='RepLKNet',
        arch=dict(SIZES, small_kernel=None, dw_ratio=1.5),
        norm_intermediate_features=True,
    ),
}
KINDS = list(TYPES)
WITH_NORMS = [kind for kind in KINDS if kind != 'replknet']
MERGEABLE = [kind for kind in KINDS if kind != 'pelk']
CONVNEXT_STYLE = ['pelk', 'slak', 'slak-dense']
GN, BN = dict(type='GN', num_groups=1), dict(type='BN')

DEPLOY, MERGED = dict(deploy=True), dict(small_kernel_merged=True)


def build(kind, arch=None, **kwargs):
    """A narrow backbone, shapes without memory."""
    cfg = {'out_indices': (0, 1), **TYPES[kind], **kwargs}
    with torch.device('meta'):
        return MODELS.build({**cfg, 'arch': {**cfg['arch'], **(arch or {})}})


_states = {}


def weights(kind, prefix='', **kwargs):
    """A backbone's state dict."""
    key = repr((kind, kwargs))
    if key not in _states:
        _states[key] = build(kind, **kwargs).state_dict()
    return {f'{prefix}{name}': value for name, value in _states[key].items()}


def whole(backbone):
    return nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(2, 2)))


HEAD = nn.Linear(2, 2).state_dict(prefix='head.')


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


# --- prefixes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ('kind', 'prefix', 'form'),
    [
        ('pelk', 'backbone.', {}),
        ('pelk', 'student.backbone.', DEPLOY),
        ('slak', 'module.', {}),
        ('slak', 'img_backbone.', DEPLOY),
        ('slak-dense', 'backbone.', DEPLOY),
        ('replknet', 'module.backbone.', {}),
        ('replknet', 'backbone.', DEPLOY),
    ],
)
def test_prefix_of_a_whole_model_is_named(kind, prefix, form):
    state = weights(kind, prefix, **form) | HEAD
    message = f"has a {TYPES[kind]['type']} under '{prefix}'; set prefix='{prefix}'"
    with pytest.raises(WeightsError, match=message):
        load_state_dict(build(kind, **form), state)


@pytest.mark.parametrize('kind', ['pelk', 'replknet'])
@pytest.mark.parametrize('loaded', [False, True])
def test_prefixes_that_a_whole_model_does_not_have(kind, loaded):
    model = whole(build(kind))
    if loaded:
        load_state_dict(model, weights(kind, 'backbone.') | HEAD)
    state = weights(kind, 'student.backbone.') | weights(kind, 'teacher.backbone.')
    with pytest.raises(
        WeightsError, match=r"under 'student\.backbone\.' and a .* under "
    ):
        load_state_dict(model, state)
    with pytest.raises(
        WeightsError, match='a backbone alone, a .* give it to the backb'
    ):
        load_state_dict(model, weights(kind))
    released = {'stages.0.0.large_kernel.lkb_origin.conv.weight': torch.zeros(1)}
    with pytest.raises(WeightsError, match='released names of SLaK'):
        load_state_dict(model, released)


# --- what is meant ----------------------------------------------------------------


@pytest.fixture
def notes(monkeypatch):
    """What the backbones have logged."""
    lines = []
    monkeypatch.setattr(
        'pelk_mm.backbones.base.print_log', lambda line, **_: lines.append(line)
    )
    return lines


@pytest.mark.parametrize('kind', KINDS)
def test_whole_weights_pass_without_a_word(kind, notes):
    model = whole(build(kind))
    load_state_dict(model, weights(kind, 'backbone.') | HEAD)
    assert model.backbone.has_weights
    load_state_dict(model.backbone.stages[0], build(kind).stages[0].state_dict())
    assert notes == []


@pytest.mark.parametrize('kind', WITH_NORMS)
def test_classifier_without_output_norms(kind, notes):
    state = {n: v for n, v in weights(kind).items() if not n.startswith('norm')}
    state |= {'norm.weight': torch.zeros(16), 'head.weight': torch.zeros(5, 16)}
    load_state_dict(build(kind), state)
    [note] = notes
    assert 'initial values of its output norms (norm0, norm1)' in note
    notes.clear()
    load_state_dict(build(kind, out_indices=(1,)), weights(kind))  # too many instead
    assert notes == []


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('form', [{}, DEPLOY])
def test_stem_of_other_channels(kind, form, notes):
    load_state_dict(build(kind, in_channels=4, **form), weights(kind, **form))
    [note] = notes
    assert 'random downsample_layers.0.0.' in note
    assert 'is for 3 image channels, not 4' in note


@pytest.mark.parametrize('kind', KINDS)
def test_stages_that_are_left_out(kind, notes):
    one = dict(channels=[8], depths=[1], kernel_sizes=[11])
    load_state_dict(build(kind, one, out_indices=(0,)), weights(kind))
    [note] = notes
    assert 'does not use the stages of the checkpoint from 1 on' in note
    with pytest.raises(WeightsError, match=r'channels \[8\], the backbone \[8, 16\]'):
        load_state_dict(build(kind), weights(kind, arch=one, out_indices=(0,)))


def test_pelk_started_from_a_replknet_has_no_stem(notes):
    state = weights('pelk')
    state = {n: v for n, v in state.items() if n.startswith('stages.')}
    load_state_dict(build('pelk'), state)
    [note] = notes
    assert 'random downsample_layers' in note
    with pytest.raises(WeightsError, match='only a part of a checkpoint'):
        load_state_dict(
            build('slak'),
            {n: v for n, v in weights('slak').items() if n.startswith('stages.')},
        )


# --- random weights, and weights that are there -----------------------------------


def loaded(kind):
    model = whole(build(kind))
    load_state_dict(model, weights(kind, 'backbone.') | HEAD)
    return model


def trained(kind):
    return whole(build(kind)).train()


def head(kind):
    return HEAD


def resnet(kind):
    return {'backbone.layer1.0.conv1.weight': torch.zeros(1)} | HEAD


def norms_alone(kind):
    """As mmdet's SyncNormHook loads them before a validation."""
    return {n: v for n, v in weights(kind, 'backbone.').items() if 'norm' in n} | HEAD


@pytest.mark.parametrize('kind', ['pelk', 'slak', 'replknet'])
@pytest.mark.parametrize(
    ('given', 'message', 'note'),
    [
        (head, r"no name that starts with 'backbone\.'; load", 'keeps its weights'),
        (resnet, r'its names, layer1\.0\.conv1\.weight, are not', 'keeps its weights'),
        (norms_alone, 'would stay at random', r'tensors that the checkpoint does not'),
    ],
)
def test_part_of_a_model(kind, given, message, note, notes):
    """It is an error as long as the backbone is random, and then a note."""
    with pytest.raises(WeightsError, match=message):
        load_state_dict(whole(build(kind)), given(kind))
    for model in (loaded(kind), trained(kind)):
        notes.clear()
        load_state_dict(model, given(kind))
        assert [note in line for line in notes] == [True]
        load_state_dict(deepcopy(model), given(kind))


def test_initialised_weights_are_random_again():
    model = MODELS.build(TYPES['pelk'] | dict(out_indices=(0, 1)))
    model.load_state_dict(model.state_dict())
    assert model.has_weights
    model.init_weights()
    with pytest.raises(WeightsError, match='names, a, are not those'):
        load_state_dict(model, {'a': torch.zeros(1)})


@pytest.mark.parametrize('kind', KINDS)
def test_misfit_is_refused_over_other_weights_too(kind):
    with pytest.raises(WeightsError, match='deployment form'):
        load_state_dict(loaded(kind), weights(kind, 'backbone.', deploy=True) | HEAD)


@pytest.mark.parametrize('kind', KINDS)
def test_way_round(kind, notes):
    load_state_dict(build(kind, partial_weights=True), weights(kind, deploy=True))
    [note] = notes
    assert 'partly at random (partial_weights=True): it is in the deployment' in note
    model = build(kind)
    model.partial_weights = True
    load_state_dict(model, {'a': torch.zeros(1)})
    assert not model.has_weights


@pytest.mark.parametrize('kind', ['pelk', 'replknet'])
def test_arrays_are_no_weights(kind):
    arrays = {n: [0] for n in weights(kind)}
    with pytest.raises(WeightsError, match='values are no tensors'):
        load_state_dict(build(kind), arrays)


@pytest.mark.parametrize('kind', ['pelk', 'replknet'])
@pytest.mark.parametrize('entry', ['model', 'state_dict'])
def test_weights_in_an_entry(kind, entry):
    for model in (build(kind), whole(build(kind))):
        with pytest.raises(WeightsError, match=f"weights are in its entry '{entry}'"):
            load_state_dict(model, {entry: weights(kind), 'epoch': 3})


# --- whoever loads ----------------------------------------------------------------


def by_torch(model, state):
    return model.load_state_dict(state, strict=False)


def by_assignment(model, state):
    return model.load_state_dict(state, strict=False, assign=True)


@pytest.mark.parametrize('load', [load_state_dict, by_torch, by_assignment])
@pytest.mark.parametrize(
    'make',
    [
        lambda model: model,
        deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: ExponentialMovingAverage(model).module,
    ],
    ids=['model', 'copy', 'pickle', 'average'],
)
def test_every_loader_and_every_copy(load, make):
    model = make(whole(build('pelk')))
    with pytest.raises(WeightsError, match='deployment form'):
        load(model, weights('pelk', 'backbone.', deploy=True) | HEAD)
    load(model, weights('pelk', 'backbone.') | HEAD)


def test_averaged_model():
    model = ExponentialMovingAverage(whole(build('pelk')))
    state = {'steps': torch.tensor(1)}
    good = weights('pelk', 'backbone.') | HEAD
    bad = weights('pelk', 'backbone.', deploy=True) | HEAD
    model.load_state_dict(state | {f'module.{n}': v for n, v in good.items()})
    with pytest.raises(RuntimeError, match='deployment form'):
        model.load_state_dict(state | {f'module.{n}': v for n, v in bad.items()})


def test_switched_backbone_takes_the_deployment_form(randomise):
    model = MODELS.build({**TYPES['pelk'], 'out_indices': (0, 1)}).eval()
    model.switch_to_deploy()
    load_state_dict(model, weights('pelk', deploy=True))
    with pytest.raises(WeightsError, match='training form'):
        load_state_dict(model, weights('pelk'))
