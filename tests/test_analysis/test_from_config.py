import pytest
import torch
from mmengine.config import Config
from torch import nn

from pelk_mm.analysis.from_config import (
    _parameters_on_meta,
    build_on_meta,
    image_shape,
    named_shape,
)

RESIZE = dict(type='Resize', scale=(2048, 512), keep_ratio=True)
PIPELINE = [dict(type='LoadImageFromFile'), RESIZE, dict(type='PackSegInputs')]


class Resize:
    """Stands for mmcv's class, which a config may name instead of its name."""


def segmenter(test=None, **entries):
    if test is not None:
        entries['test_dataloader'] = dict(batch_size=1, dataset=test)
    return Config(dict(default_scope='mmseg', model=dict(type='A')) | entries)


def dataset(*steps):
    return dict(type='BaseSegDataset', pipeline=list(steps))


@pytest.mark.parametrize(
    ('data', 'shape'),
    [
        (dataset(*PIPELINE), (512, 2048)),
        (dataset(RESIZE | dict(type='mmseg.Resize')), (512, 2048)),
        (dataset(RESIZE | dict(type=Resize)), (512, 2048)),
        (dataset(RESIZE | dict(scale=640)), (640, 640)),
        (dataset(RESIZE, dict(type='Pad', size=(1024, 768))), (768, 1024)),
        (
            dataset(
                dict(type='ResizeEdge', scale=256),
                dict(type='CenterCrop', crop_size=224),
            ),
            (224, 224),
        ),
        (dict(type='RepeatDataset', times=2, dataset=dataset(RESIZE)), (512, 2048)),
        (dict(type='ConcatDataset', datasets=[dataset(RESIZE)]), (512, 2048)),
        (
            dict(
                type='ClassBalancedDataset',
                dataset=dict(type='ConcatDataset', datasets=[dataset(RESIZE)]),
            ),
            (512, 2048),
        ),
        (dataset(dict(type='TestTimeAug', transforms=[[RESIZE]])), (512, 2048)),
    ],
)
def test_scale_of_the_test_images(data, shape):
    assert image_shape(segmenter(data)) == shape
    listed = segmenter(test_dataloader=[dict(dataset=data)])
    assert image_shape(listed) == shape


FACTOR = dataset(dict(type='Resize', scale_factor=0.5))
CROP = dict(dataset=dataset(dict(type='RandomCrop', crop_size=(256, 384))))


@pytest.mark.parametrize('test', [FACTOR, dataset(PIPELINE[0]), None])
def test_without_it_the_size_that_the_model_is_trained_with(test):
    sized = dict(type='A', data_preprocessor=dict(size=(256, 320)))
    assert image_shape(segmenter(test, model=sized)) == (256, 320)
    assert image_shape(segmenter(test, train_dataloader=CROP)) == (256, 384)
    sliding = dict(type='A', test_cfg=dict(mode='slide', crop_size=(64, 96)))
    assert image_shape(segmenter(test, model=sliding)) == (64, 96)
    assert image_shape(segmenter(test, data_preprocessor=dict(size=(32, 64)))) == (
        32,
        64,
    )
    assert named_shape(segmenter(test)) is None
    assert image_shape(segmenter(test)) == (512, 2048)
    assert image_shape(segmenter(test, default_scope='mmpretrain')) == (224, 224)
    with pytest.raises(ValueError, match='names no size of images.*--shape H W'):
        image_shape(segmenter(test, default_scope=None, model=dict(type='PeLK')))


def detector(scale, **preprocessor):
    pipeline = [dict(type='Resize', scale=scale)] if scale else []
    return segmenter(
        dict(pipeline=pipeline),
        default_scope='mmdet',
        model=dict(type='A', data_preprocessor=preprocessor),
    )


def test_detectors_on_images_of_cocos_size_are_counted_as_in_the_papers():
    assert image_shape(detector((1333, 800))) == (800, 1280)
    assert image_shape(detector(None)) == (800, 1280)
    assert image_shape(detector((300, 300))) == (300, 300)
    assert image_shape(detector((640, 600), pad_size_divisor=32)) == (608, 640)


@pytest.mark.parametrize('cfg', [{}, dict(model=None), dict(model=dict(a=1))])
def test_config_without_a_model(cfg):
    with pytest.raises(ValueError, match='has no model; give the config of'):
        build_on_meta(Config(cfg))


def test_model_that_cannot_be_built():
    cfg = Config(dict(model=dict(type='PeLK', arch='huge')))
    with pytest.raises(ValueError, match="cannot be built: .*arch 'huge' of PeLK"):
        build_on_meta(cfg)


def test_only_parameters_are_on_the_meta_device():
    register = nn.Module.register_parameter
    with _parameters_on_meta():
        norm = nn.BatchNorm2d(4)
        rates = torch.linspace(0, 1, 3).tolist()
    assert norm.weight.is_meta
    assert isinstance(norm.weight, nn.Parameter)
    assert norm.running_var.tolist() == [1] * 4
    assert rates == [0, 0.5, 1]
    assert nn.Module.register_parameter is register
