"""Class-activation maps: which layers have one, and that it is where it should be."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from pelk_mm.inference.cam import (
    class_activation,
    list_layers,
    paint_heat,
    require_category,
    require_grad_cam,
    require_layer,
)
from pelk_mm.inference.models import InferenceError
from pelk_mm.inference.pictures import show_all

try:
    require_grad_cam()
    MISSING = ''
except InferenceError as error:
    MISSING = str(error)
needs_grad_cam = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def test_listed_layers(segmenter, image):
    layers = {layer.name: layer for layer in list_layers(segmenter, image)}
    assert layers['backbone.stages.0'].shape == (8, 16, 24)
    assert layers['backbone.stages.3.blocks.0'].kind == 'ConvNeXtBlock'
    assert layers['decode_head.conv_seg'].shape == (4, 2, 3)
    # The pointwise layers of the blocks have the channels last.
    assert layers['backbone.stages.0.blocks.0.pointwise_conv1'].shape == (32, 16, 24)
    assert 'backbone' not in layers  # it returns several maps
    names = [name for name, _ in segmenter.model.named_modules()]
    assert [name for name in names if name in layers] == list(layers)


def test_layers_of_detectors_are_those_of_backbone_and_neck(detector):
    image = np.zeros((96, 96, 3), np.uint8)
    layers = {layer.name for layer in list_layers(detector, image)}
    assert 'backbone.stages.3' in layers
    assert any(name.startswith('neck.fpn_convs.0') for name in layers)
    assert {name.partition('.')[0] for name in layers} == {'backbone', 'neck'}


def test_unknown_layers_and_classes(segmenter, detector):
    assert isinstance(require_layer(segmenter, 'decode_head.conv_seg'), nn.Conv2d)
    with pytest.raises(InferenceError, match=r'did you mean backbone\.stages\.3'):
        require_layer(segmenter, 'backbone.stage.3')
    with pytest.raises(InferenceError, match="no layer ''.*--cam list"):
        require_layer(segmenter, '')
    assert require_category(segmenter, 'sky') == 1
    with pytest.raises(InferenceError, match="no class 'skye'; did you mean sky?"):
        require_category(segmenter, 'skye')
    with pytest.raises(InferenceError, match='for segmenters'):
        require_category(detector, 'person')


def test_heat_is_painted(image):
    heat = np.zeros((64, 96), np.float32)
    heat[:, 48:] = 1
    picture = paint_heat(image, heat)
    assert picture.shape == (320, 480, 3)
    change = picture.astype(int) - paint_heat(image, 1 - heat)
    assert change[:, 300:, 0].mean() > 30  # red where it is hot
    assert change[:, :180, 2].mean() > 30  # blue where it is cold


@pytest.mark.skipif(not MISSING, reason='grad-cam can be imported')
def test_without_grad_cam_the_error_has_the_remedy(segmenter, image):
    with pytest.raises(InferenceError, match='install'):
        class_activation(segmenter, image, 'backbone.stages.3')


@needs_grad_cam
@pytest.mark.parametrize(
    ('layer', 'reason'),
    [
        ('backbone', 'returns a tuple, not one feature map'),
        ('decode_head.loss_decode', 'is not run by the prediction'),
        ('backbone.stages.7', 'no layer'),
    ],
)
def test_layers_without_maps(segmenter, image, layer, reason):
    with pytest.raises(InferenceError, match=reason):
        class_activation(segmenter, image, layer)


@needs_grad_cam
def test_map_is_grad_cam_s_formula(segmenter, image):
    """Of the last layer: its maps weighted by the mean gradients of the class."""
    model, layer = segmenter.model, 'backbone.stages.3'
    heat, what = class_activation(segmenter, image, layer)
    inputs = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float()
    maps = []
    handle = model.backbone.stages[3].register_forward_hook(
        lambda *args: maps.append(args[2])
    )
    logits = model((inputs - 120) / 60, None, mode='tensor')[0]
    handle.remove()
    category = int(logits.argmax(0).flatten().bincount().argmax())
    logits[category][logits.argmax(0) == category].sum().backward(inputs=maps)
    weights = maps[0].grad.mean((2, 3), keepdim=True)
    expected = (weights * maps[0]).sum(1)[0].relu()
    expected = cv2.resize((expected - expected.min()).detach().numpy(), (96, 64))
    expected /= expected.max()  # grad-cam scales what it has enlarged
    assert what == f'Grad-CAM of {segmenter.class_name(category)}'
    assert heat.shape == (64, 96)
    assert np.abs(heat - expected).max() < 1e-3
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


@needs_grad_cam
@pytest.mark.parametrize(
    'layer', ['backbone.stages.1', 'backbone.stages.2.blocks.0.pointwise_conv1']
)
def test_layers_and_classes_have_maps_of_their_own(segmenter, image, layer):
    present = np.unique(segmenter.predict(image).labels)
    maps = []
    for category in present[:2]:
        try:
            maps.append(class_activation(segmenter, image, layer, int(category))[0])
        except InferenceError:  # too few pixels for the head's own resolution
            continue
    assert maps
    for heat in maps:
        assert heat.shape == (64, 96)
        assert 0 <= heat.min() <= heat.max() <= 1
    if len(maps) > 1:
        assert np.abs(maps[0] - maps[1]).max() > 0.01


@needs_grad_cam
def test_class_that_is_not_there(segmenter, image):
    absent = set(range(4)) - set(np.unique(segmenter.predict(image).labels).tolist())
    flat = image if absent else np.zeros_like(image)
    labels = segmenter.predict(flat).labels
    category = next(i for i in range(4) if i not in labels)
    with pytest.raises(InferenceError, match='no pixel is predicted as'):
        class_activation(segmenter, flat, 'backbone.stages.3', category)


@needs_grad_cam
def test_detector_has_eigen_cam(detector):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (90, 131, 3), dtype=np.uint8)
    heat, what = class_activation(detector, image, 'backbone.stages.2')
    assert what == 'Eigen-CAM'
    assert heat.shape == (90, 131)
    assert 0 <= heat.min() < heat.max() <= 1
    with pytest.raises(InferenceError, match='is not run by the prediction'):
        class_activation(detector, image, 'roi_head.mask_head.0.conv_logits')


@needs_grad_cam
def test_files(segmenter_files, tmp_path, capsys):
    source = str(segmenter_files / 'image.png')
    files = [str(segmenter_files / f'segmenter.{suffix}') for suffix in ('py', 'pth')]
    out = tmp_path / 'out'
    assert show_all(source, *files, out, cam='backbone.stages.3') == []
    assert sorted(path.name for path in out.iterdir()) == ['image.png', 'image_cam.png']
    assert '2 pictures in' in capsys.readouterr().out
    picture = cv2.imread(str(out / 'image_cam.png'))
    assert picture.shape[0] == 320
    assert picture.shape[1] > 480
