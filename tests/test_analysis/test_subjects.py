from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from pelk_mm.analysis import subjects
from pelk_mm.analysis.from_config import build_on_meta
from pelk_mm.analysis.subjects import (
    COMPETITORS,
    Features,
    Predictions,
    Subject,
    UnavailableError,
    Whole,
    of_like_size,
    plan_subjects,
)
from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.config_types import ConfigError

from .narrow_configs import ARCHS, write_narrow


@pytest.fixture(autouse=True, scope='module')
def _one_thread(one_thread):
    """For all tests of this file."""


@pytest.mark.parametrize(
    ('millions', 'names'),
    [
        (1, ['swin_tiny', 'convnext_tiny']),
        (29, ['swin_tiny', 'convnext_tiny']),
        (50, ['swin_small', 'convnext_small']),
        (79, ['swin_base', 'convnext_base']),
        (335, ['swin_large', 'convnext_large']),
    ],
)
def test_like_size(millions, names):
    assert of_like_size(millions * 10**6) == names


@pytest.mark.parametrize('name', [n for n in COMPETITORS if n.startswith('swin')])
def test_sizes_of_competitors(tmp_path, name):
    """Parameters as in the table, and maps that the head reads."""
    config = write_narrow(tmp_path, channels=3)
    model = build_on_meta(Subject(name, config, competitor=name).read())
    count = sum(each.numel() for each in model.backbone.parameters())
    # The config takes two maps, so the norms of the others are not there.
    assert count / 1e6 == pytest.approx(COMPETITORS[name].millions, abs=0.1)
    assert model.decode_head.in_channels == COMPETITORS[name].channels[1]


@pytest.mark.parametrize('kind', ARCHS)
@pytest.mark.parametrize('part', ['whole', 'backbone'])
@torch.no_grad()
def test_the_same_weights_in_every_process(tmp_path, kind, part):
    subject = Subject('ours', write_narrow(tmp_path, kind), part)
    one, two = subject.build(), subject.build()
    assert not one.training
    state = two.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    images = torch.randn(2, 3, 64, 96)
    outputs = one(images)
    if part == 'whole':
        assert outputs.shape[:2] == (2, 5)
    else:
        assert [each.shape[1] for each in outputs] == [8, 16]
    # Drawn, so that folding them wrongly shows.
    kinds = nn.modules.batchnorm._BatchNorm  # mmengine reverts SyncBN to its own
    norms = [m for m in one.modules() if isinstance(m, kinds)]
    assert norms or (kind, part) == ('PeLK', 'backbone')
    assert all((norm.running_var != 1).all() for norm in norms)
    assert all((norm.running_mean != 0).all() for norm in norms)
    scales = [p for name, p in one.named_parameters() if name.endswith('gamma')]
    assert all((scale > 0.05).all() for scale in scales)
    assert bool(scales) == (kind != 'RepLKNet')


def test_weights_of_a_whole_model_and_of_its_backbone(tmp_path):
    config, path = write_narrow(tmp_path), tmp_path / 'a.pth'
    trained = Subject('ours', config).build().model
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1)
    torch.save({'state_dict': trained.state_dict()}, path)
    (subject,) = plan_subjects(config, [], checkpoint=str(path))
    state = subject.build().model.state_dict()
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    for weights in (trained.state_dict(), trained.backbone.state_dict()):
        torch.save({'state_dict': weights}, path)
        (subject,) = plan_subjects(config, [], part='backbone', checkpoint=str(path))
        state = subject.build().backbone.state_dict()
        for name, tensor in trained.backbone.state_dict().items():
            assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'does not exist'),
        ([1], 'it holds a list'),
        ({'state_dict': {}}, r'a\.pth: .*does not fit the backbone, a PeLK'),
        ({'state_dict': {'backbone.stages.0': 1}}, r'a\.pth: .*does not fit'),
        ({'state_dict': {'head.weight': torch.ones(2)}}, r'a\.pth: .*head\.weight'),
    ],
)
@pytest.mark.parametrize('part', ['whole', 'backbone'])
def test_checkpoints_that_do_not_fit(tmp_path, content, message, part):
    path = tmp_path / 'a.pth'
    if content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message) as caught:
        plan_subjects(write_narrow(tmp_path), [], part=part, checkpoint=str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_compared(tmp_path):
    config, other = write_narrow(tmp_path), write_narrow(tmp_path, 'SLaK')
    planned = plan_subjects(config, ['swin_small', other], part='backbone')
    assert [each.name for each in planned] == [
        'narrow_pelk_3',
        'swin_small',
        'narrow_slak_3',
    ]
    assert {each.part for each in planned} == {'backbone'}
    assert [each.name for each in plan_subjects(config)[1:]] == [
        'swin_tiny',
        'convnext_tiny',
    ]


def test_images_of_other_channels(tmp_path):
    config, grey = write_narrow(tmp_path), write_narrow(tmp_path, channels=1)
    subject, swin = plan_subjects(grey, ['swin_tiny'])
    assert subject.channels == swin.channels == 1
    assert swin.read().model.backbone.in_channels == 1
    with pytest.raises(ValueError, match='takes images of 1 channels, and .* of 3'):
        plan_subjects(config, [grey])


def test_configs_without_a_model(tmp_path):
    path = tmp_path / 'empty.py'
    with pytest.raises(ConfigError, match='does not exist'):
        plan_subjects(str(path))
    path.write_text('a = 1')
    with pytest.raises(ValueError, match='has no model with a backbone'):
        plan_subjects(str(path))
    path.write_text("model = dict(backbone=dict(type='PeLK', arch='huge'))")
    with pytest.raises(ValueError, match='has no model'):
        plan_subjects(str(path))


def test_packages_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(subjects, 'find_spec', lambda name: None)
    config = write_narrow(tmp_path)
    for name, message in (
        ('swin_tiny', 'mmseg and mmdet are not installed, which have SwinTransformer'),
        ('convnext_base', 'mmpretrain is not installed, which has ConvNeXt'),
    ):
        with pytest.raises(UnavailableError, match=message):
            Subject(name, config, competitor=name).read()


def test_a_neck_reads_the_maps(tmp_path):
    """In the place of a backbone of which the neck reads three maps."""
    cfg = ConfigDict(
        default_scope='mmdet',
        model=dict(
            type='FCOS',
            backbone=dict(type='PeLK', out_indices=(1, 2, 3)),
            neck=[dict(in_channels=[1, 2, 3]), dict(in_channels=256)],
            decode_head=dict(in_channels=7),
        ),
    )
    subjects._replace_backbone(cfg, 'swin_tiny', 3)
    assert cfg.model.backbone.out_indices == (1, 2, 3)
    assert cfg.model.backbone.type in ('mmdet.SwinTransformer', 'mmseg.SwinTransformer')
    assert cfg.model.neck[0].in_channels == [192, 384, 768]
    assert cfg.model.neck[1].in_channels == 256
    assert cfg.model.decode_head.in_channels == 7


def test_heads_read_the_maps():
    cfg = ConfigDict(
        default_scope='mmseg',
        model=dict(
            backbone=dict(type='PeLK'),
            decode_head=dict(in_channels=[1, 2, 3, 4], in_index=[0, 1, 2, 3]),
            auxiliary_head=[dict(in_channels=3, in_index=2), dict(in_channels=4)],
        ),
    )
    subjects._replace_backbone(cfg, 'swin_base', 3)
    assert cfg.model.decode_head.in_channels == [128, 256, 512, 1024]
    assert [head.in_channels for head in cfg.model.auxiliary_head] == [512, 1024]


def test_backbone_with_neck():
    neck = nn.Module()
    neck.forward = lambda maps: [each + 1 for each in maps]
    backbone = nn.Module()
    backbone.forward = lambda images: (images, 2 * images)
    images = torch.ones(1, 3, 4, 4)
    assert [each.max() for each in Features(backbone)(images)] == [1, 2]
    assert [each.max() for each in Features(backbone, neck)(images)] == [2, 3]


def test_predictions_of_a_detector():
    """mmdet's predict is given what it knows of images, and the scores are compared."""

    class Detector(nn.Module):
        def predict(self, images, samples, rescale):
            assert not rescale
            for sample in samples:
                assert sample.metainfo['batch_input_shape'] == (32, 64)
                assert sample.metainfo['scale_factor'] == (1.0, 1.0)
                scores = torch.tensor([0.9, 0.1])
                sample.pred_instances = SimpleNamespace(scores=scores)
            return samples

    module = subjects.wrap(Detector(), predicts=True)
    assert isinstance(module, Predictions)
    scores = module(torch.ones(2, 3, 32, 64))
    torch.testing.assert_close(scores, torch.tensor([[0.9, 0.1]]))


def test_models_that_are_no_models_of_mmengine():
    module = subjects.wrap(nn.Conv2d(3, 4, 1))
    assert isinstance(module, Whole)
    assert module(torch.ones(1, 3, 2, 2)).shape == (1, 4, 2, 2)


@pytest.mark.parametrize(('scope', 'predicts'), [('mmdet', True), ('mmseg', False)])
def test_who_predicts(scope, predicts):
    cfg = dict(default_scope=scope)
    assert Subject('a', 'a.py', 'whole').predicts(cfg) is predicts
    assert Subject('a', 'a.py', 'backbone').predicts(cfg) is False
