"""Opening models: what is checked, class names and colours, the deployment form."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.config_types import ConfigError
from pelk_mm.conversion.deploy import DEPLOYED, deploy_checkpoint
from pelk_mm.inference.models import InferenceError, dataset_meta, open_model

CLASSES = ('ground', 'sky', 'tree & <b>bush</b>', 'boat')
PALETTE = [(120, 90, 40), (90, 150, 230), (40, 140, 60), (200, 60, 50)]


def write(tmp_path, text, name='other.py'):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_names_colours_and_prediction(segmenter, image):
    assert segmenter.is_segmenter
    assert tuple(segmenter.classes) == CLASSES
    assert segmenter.palette == PALETTE
    assert segmenter.notices == []
    result = segmenter.predict(image)
    assert result.labels.shape == image.shape[:2] == (64, 96)
    assert result.scores.shape == (4, 64, 96)
    assert np.array_equal(result.labels, result.scores.argmax(0))
    assert len(np.unique(result.labels)) > 1
    assert 0 < result.seconds < 60


def test_prediction_is_the_model_s_own(segmenter, image):
    model = segmenter.model
    inputs = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        logits = model((inputs - 120) / 60, None, mode='tensor')
        logits = torch.nn.functional.interpolate(logits, (64, 96), mode='bilinear')
    torch.testing.assert_close(
        segmenter.predict(image).scores, logits[0], rtol=1e-4, atol=1e-4
    )


def test_deployment_form_predicts_the_same(segmenter_files, segmenter, image, tmp_path):
    before = segmenter.predict(image).scores
    switched = open_model(
        segmenter_files / 'segmenter.py', segmenter_files / 'segmenter.pth', deploy=True
    )
    assert switched.model.backbone.deploy
    # A checkpoint that is in this form already says so itself.
    deploy_checkpoint(
        segmenter_files / 'segmenter.py',
        segmenter_files / 'segmenter.pth',
        tmp_path / 'deployed.pth',
    )
    assert torch.load(tmp_path / 'deployed.pth')['meta'][DEPLOYED]
    for deploy in (False, True):
        opened = open_model(
            segmenter_files / 'segmenter.py', tmp_path / 'deployed.pth', deploy=deploy
        )
        assert tuple(opened.classes) == CLASSES
        for model in (switched, opened):
            scores = model.predict(image).scores
            torch.testing.assert_close(scores, before, rtol=1e-3, atol=1e-3)


def test_names_of_the_config_where_the_checkpoint_has_none(segmenter_files):
    model = open_model(
        segmenter_files / 'segmenter.py', segmenter_files / 'nameless.pth'
    )
    assert model.classes == ['a', 'b', 'c', 'd']
    assert len({model.colour(i) for i in range(4)}) == 4
    assert model.notices == []


def test_numbers_where_nothing_has_names(segmenter_files, tmp_path, image):
    text = (
        (segmenter_files / 'segmenter.py')
        .read_text()
        .replace("metainfo=dict(classes=('a', 'b', 'c', 'd')),", '')
    )
    config = write(tmp_path, text)
    model = open_model(config, segmenter_files / 'nameless.pth')
    (notice,) = model.notices
    assert 'nameless.pth' in notice
    assert 'classes are numbered' in notice
    assert model.class_name(3) == 'class 3'
    assert model.colour(3) == model.colour(3) != model.colour(2)
    model.predict(image)


def test_colours_of_the_config_go_with_names_of_the_checkpoint(segmenter_files):
    cfg = Config.fromfile(segmenter_files / 'segmenter.py')
    dataset = cfg.test_dataloader.dataset
    dataset.metainfo = dict(classes=CLASSES, palette=PALETTE)
    names = dict(CLASSES=CLASSES)  # mmseg 0.x, without colours
    assert dataset_meta(cfg, 'mmseg', names)['palette'] == PALETTE
    dataset.metainfo.classes = ('p', 'q', 'r', 's')  # of other data
    found = dataset_meta(cfg, 'mmseg', names)
    assert tuple(found['classes']) == CLASSES
    assert found['palette'] != PALETTE


def test_wrapped_data_set(segmenter_files, tmp_path, image):
    cfg = Config.fromfile(segmenter_files / 'segmenter.py')
    inner = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner])
    cfg.dump(tmp_path / 'wrapped.py')
    model = open_model(tmp_path / 'wrapped.py', segmenter_files / 'nameless.pth')
    assert model.classes == ['a', 'b', 'c', 'd']
    assert model.predict(image).labels.shape == (64, 96)


@pytest.mark.parametrize(
    ('old', 'new', 'error', 'message'),
    [
        (
            'num_classes=4',
            'num_classes=5',
            CheckpointError,
            r'wrongly shaped tensors \(decode_head.conv_seg',
        ),
        ('num_convs=1', 'num_convs=2', CheckpointError, 'missing tensors? .decode_hea'),
        ('[8, 12, 16, 24]', '[8, 12, 16, 25]', CheckpointError, 'does not fit the'),
        (
            "type='FCNHead'",
            "type='NoHead'",
            InferenceError,
            'cannot be built: .*NoHead',
        ),
        ('test_dataloader', 'other', InferenceError, 'no test_dataloader with a pipel'),
        (
            'test_dataloader',
            "test_dataloader = ''\nother",
            InferenceError,
            'no test_dataloader with a pipel',
        ),
        ('LoadImageFromFile', 'LoadImageFromNDArray', InferenceError, 'not found in'),
        ('model = dict', 'other = dict', InferenceError, 'has no model; give the conf'),
        ('dict(mode', 'dict(mode=', ConfigError, 'cannot be read'),
        (
            "type='EncoderDecoder'",
            "type='mmpretrain.ImageClassifier'",
            InferenceError,
            'is a config of mmpretrain; give one of a segmenter',
        ),
    ],
)
def test_what_cannot_be_opened(segmenter_files, tmp_path, old, new, error, message):
    text = (segmenter_files / 'segmenter.py').read_text()
    assert old in text
    config = write(tmp_path, text.replace(old, new, 1))
    with pytest.raises(error, match=message) as raised:
        open_model(config, segmenter_files / 'segmenter.pth')
    assert '\n' not in str(raised.value)[:80]


def test_files_that_are_not_there(segmenter_files, tmp_path):
    with pytest.raises(ConfigError, match=r'gone\.py does not exist'):
        open_model(tmp_path / 'gone.py', segmenter_files / 'segmenter.pth')
    with pytest.raises(CheckpointError, match=r'gone\.pth does not exist'):
        open_model(segmenter_files / 'segmenter.py', tmp_path / 'gone.pth')
    with pytest.raises(CheckpointError, match='is not a checkpoint'):
        open_model(segmenter_files / 'segmenter.py', segmenter_files / 'image.png')


@pytest.mark.parametrize('device', ['nonsense', 'cuda:99', 'meta'])
def test_devices_that_are_not_there(segmenter_files, device):
    with pytest.raises(InferenceError, match=f"device '{device}'.*leave it out"):
        open_model(
            segmenter_files / 'segmenter.py', segmenter_files / 'segmenter.pth', device
        )


class Other(nn.Module):
    """A backbone that is none of ours."""

    def __init__(self, arch):
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 4, 32)

    def forward(self, x):
        return [None, None, None, self.conv(x)]


def test_backbone_of_others_has_no_deployment_form(
    segmenter_files, tmp_path, monkeypatch
):
    monkeypatch.setitem(MODELS.module_dict, 'Other', Other)
    text = (segmenter_files / 'segmenter.py').read_text()
    config = write(tmp_path, text.replace('PeLK', 'Other'))
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(Config.fromfile(config).model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'other.pth')
    with pytest.raises(InferenceError, match='is Other, which has no deployment form'):
        open_model(config, tmp_path / 'other.pth', deploy=True)


def test_image_that_the_model_fails_on_is_named(segmenter):
    image = np.zeros((64, 96, 5), np.uint8)
    with pytest.raises(InferenceError, match='cannot predict for an image of 96 x 64'):
        segmenter.predict(image)
