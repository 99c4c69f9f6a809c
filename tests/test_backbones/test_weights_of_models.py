"""Prefixes, weights that are meant to be partial, and whoever loads them."""

import pickle
from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from pelk_mm.checkpoints.fit import WeightsError

from .narrow_models import HEAD, KINDS, TYPES, build, weights, whole

WITH_NORMS = [kind for kind in KINDS if kind != 'replknet']
DEPLOY = dict(deploy=True)

# mmcv's BatchNorm counts its batches, which takes memory.
pytestmark = pytest.mark.filterwarnings('ignore:for .*copying from a non-meta')


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
    with pytest.raises(WeightsError, match='a backbone alone, a .* start a training '):
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
        'pelk_mm.backbones.weights.print_log', lambda line, **_: lines.append(line)
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
        lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301
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


@pytest.fixture
def process_group():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures('process_group')
@pytest.mark.filterwarnings('ignore')
def test_sharded_model():
    """Weights of a backbone whose own modules are sharded are not compared."""

    def shard(**kwargs):
        model = whole(MODELS.build(TYPES['pelk'] | dict(out_indices=(0, 1))))
        device = torch.device('cpu')
        return FullyShardedDataParallel(model, device_id=device, **kwargs)

    source = MODELS.build(TYPES['pelk'] | dict(out_indices=(0, 1)))
    state = whole(source).state_dict()
    stages = ModuleWrapPolicy({type(source.stages[0])})
    shard(auto_wrap_policy=stages).load_state_dict(state)
    shard().load_state_dict(state)
    source.eval().switch_to_deploy()
    with pytest.raises(WeightsError, match='deployment form'):
        shard().load_state_dict(whole(source).state_dict(), strict=False)
