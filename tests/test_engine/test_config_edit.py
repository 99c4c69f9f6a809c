from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import TRANSFORMS
from mmengine.config import Config

from pelk_mm.engine import (
    set_accumulation,
    set_crop_size,
    set_max_epochs,
    set_num_classes,
)
from pelk_mm.engine.config_edit import crop_sizes

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


class RandomCrop:
    """A transform that a config names by its class."""


def load(name):
    return Config.fromfile(CONFIGS / f'{name}.py')


def numbers_of_classes(node, key=''):
    """Every ``num_classes`` in a config, by the key of its dict."""
    if isinstance(node, dict):
        if 'num_classes' in node:
            yield key, node['num_classes']
        for name, value in node.items():
            yield from numbers_of_classes(value, name)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from numbers_of_classes(value, key)


@pytest.mark.parametrize(
    ('name', 'heads'),
    [
        ('upernet_pelk_t_ade20k', ['auxiliary_head', 'decode_head']),
        ('cascade_mask_rcnn_slak_t_coco', ['bbox_head'] * 3 + ['mask_head']),
        ('fcos_replknet_31b_coco', ['bbox_head']),
    ],
)
def test_classes_of_every_head(name, heads):
    cfg = load(name)
    set_num_classes(cfg, 7)
    assert sorted(numbers_of_classes(cfg.model)) == [(head, 7) for head in heads]


def test_classes_in_a_config_file(tmp_path):
    path = tmp_path / 'leaf.py'
    path.write_text(
        f"_base_ = '{CONFIGS}/cascade_mask_rcnn_pelk_t_coco.py'\n"
        "edit = __import__('pelk_mm').engine\n"
        'edit.set_num_classes(_base_, 3)\n'
        'model = dict(roi_head=dict(mask_head=dict(num_convs=2)))\n'
    )
    cfg = Config.fromfile(path)
    assert [head.num_classes for head in cfg.model.roi_head.bbox_head] == [3] * 3
    assert cfg.model.roi_head.mask_head.num_classes == 3
    assert cfg.model.roi_head.mask_head.num_convs == 2
    # What is dumped with a run and in its checkpoints can be read again.
    assert 'edit' not in cfg
    text = Config(cfg.to_dict(), format_python_code=False).pretty_text
    (tmp_path / 'dumped.py').write_text(text)
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


def test_classes_of_other_structures():
    heads = [dict(num_classes=4), dict(num_classes=4, out_channels=4)]
    model = dict(
        backbone=dict(num_classes=1000),
        rpn_head=dict(num_classes=1),
        decode_head=heads,
        auxiliary_head=dict(num_classes=2, out_channels=1),
    )
    set_num_classes(dict(model=model), 2)
    assert heads == [dict(num_classes=2), dict(num_classes=2, out_channels=2)]
    assert model['backbone'] == dict(num_classes=1000)
    assert model['rpn_head'] == dict(num_classes=1)
    assert model['auxiliary_head'] == dict(num_classes=2, out_channels=1)


@pytest.mark.parametrize('number', [0, -1, 2.0, '3', True, None])
def test_bad_number_of_classes(number):
    with pytest.raises(ValueError, match=f'num_classes {number!r} must be a positive'):
        set_num_classes(load('upernet_pelk_t_ade20k'), number)


@pytest.mark.parametrize('cfg', [{}, dict(model=dict(backbone=dict(num_classes=5)))])
def test_no_head_with_classes(cfg):
    with pytest.raises(ValueError, match='no head in model has num_classes'):
        set_num_classes(cfg, 3)


def test_panoptic_head_is_left_to_the_user():
    model = dict(panoptic_head=dict(num_things_classes=80, num_stuff_classes=53))
    with pytest.raises(ValueError, match='num_stuff_classes and num_things_classes'):
        set_num_classes(dict(model=model), 3)


def pipeline_values(cfg, loader, kind, key):
    pipeline = cfg[loader].dataset.pipeline
    return [step[key] for step in pipeline if step.type == kind]


@pytest.mark.parametrize(
    ('size', 'stride'),
    [((320, 320), (213, 213)), ((256, 768), (170, 511)), (128, (85, 85))],
)
@pytest.mark.parametrize('name', ['upernet_pelk_t_ade20k', 'upernet_slak_b_ade20k'])
def test_crop_size_everywhere(name, size, stride):
    cfg = load(name)
    set_crop_size(cfg, size)
    pair = size if isinstance(size, tuple) else (size, size)
    assert cfg.crop_size == pair
    assert cfg.model.data_preprocessor.size == pair
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=pair, stride=stride)
    assert pipeline_values(cfg, 'train_dataloader', 'RandomCrop', 'crop_size') == [pair]
    assert set(crop_sizes(cfg).values()) == {pair}
    # Everything else is as it was.
    set_crop_size(cfg, (512, 512))
    assert cfg.to_dict() == {
        **(base := load(name).to_dict()),
        'model': {**base['model'], 'test_cfg': cfg.model.test_cfg.to_dict()},
    }


def test_scale_of_training_and_testing():
    cfg = load('upernet_pelk_t_ade20k')
    set_crop_size(cfg, 640, scale=(2560, 640))
    for loader, kind in (
        ('train_dataloader', 'RandomResize'),
        ('val_dataloader', 'Resize'),
        ('test_dataloader', 'Resize'),
    ):
        assert pipeline_values(cfg, loader, kind, 'scale') == [(2560, 640)]
    assert cfg.scale == (2560, 640)


def test_crops_of_a_wrapped_data_set_and_by_class():
    def pipeline(kind):
        return [dict(type='RandomFlip'), dict(type=kind, crop_size=(512, 512))]

    cfg = Config(
        dict(
            model=dict(data_preprocessor=dict(size=(512, 512)), test_cfg=dict()),
            train_dataloader=dict(
                dataset=dict(
                    type='ConcatDataset',
                    datasets=[
                        dict(pipeline=pipeline(RandomCrop)),
                        dict(pipeline=pipeline('mmseg.RandomCrop')),
                    ],
                )
            ),
        )
    )
    set_crop_size(cfg, 64)
    datasets = cfg.train_dataloader.dataset.datasets
    assert [data.pipeline[1].crop_size for data in datasets] == [(64, 64)] * 2
    assert set(crop_sizes(cfg).values()) == {(64, 64)}


def test_padding_to_the_crop_follows_it_with_the_width_first():
    pipeline = [
        dict(type='RandomCrop', crop_size=(512, 512)),
        dict(type='Pad', size=(512, 512)),
        dict(type='Pad', size_divisor=32),
    ]
    cfg = Config(
        dict(
            model=dict(data_preprocessor=dict(size=(512, 512))),
            train_dataloader=dict(dataset=dict(pipeline=pipeline)),
        )
    )
    set_crop_size(cfg, (48, 64))
    crop, fixed, divisor = cfg.train_dataloader.dataset.pipeline
    assert (crop.crop_size, fixed['size']) == ((48, 64), (64, 48))
    assert divisor.to_dict() == dict(type='Pad', size_divisor=32)
    padded = TRANSFORMS.build(fixed)(dict(img=np.zeros((30, 40, 3), np.uint8)))
    assert padded['img'].shape == (48, 64, 3)


@pytest.mark.parametrize('size', [0, (64,), (64, 0), (64, 64, 3), (64.0, 64.0), None])
def test_bad_crop_size(size):
    cfg = load('upernet_pelk_t_ade20k')
    before = cfg.to_dict()
    with pytest.raises(ValueError, match='crop_size .* must be two positive integers'):
        set_crop_size(cfg, size)
    with pytest.raises(ValueError, match='scale .* must be two positive integers'):
        set_crop_size(cfg, 64, scale=size or 0)
    assert cfg.to_dict() == before


@pytest.mark.parametrize(
    'name', ['fcos_replknet_31b_coco', 'cascade_mask_rcnn_pelk_t_coco']
)
def test_crop_size_of_a_detector(name):
    with pytest.raises(ValueError, match='needs a segmenter with RandomCrop'):
        set_crop_size(load(name), 320)


def test_whole_inference_keeps_its_mode():
    cfg = load('demo/upernet_pelk_narrow_drawn_scenes')
    set_crop_size(cfg, 96)
    assert cfg.model.test_cfg == dict(mode='whole')
    assert cfg.model.data_preprocessor.size == (96, 96)


def test_length_of_a_training_that_counts_epochs():
    cfg = load('pretrain/pelk_t_300e_in1k')
    set_max_epochs(cfg, 90)
    assert cfg.train_cfg.max_epochs == cfg.max_epochs == 90
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.begin, warm_up.end, decay.begin, decay.end) == (0, 20, 20, 90)
    with pytest.raises(ValueError, match='max_epochs 20 ends before CosineAnnealingLR'):
        set_max_epochs(cfg, 20)
    with pytest.raises(ValueError, match='max_epochs 0 must be a positive integer'):
        set_max_epochs(cfg, 0)
    with pytest.raises(ValueError, match='the training counts iterations'):
        set_max_epochs(load('upernet_pelk_t_ade20k'), 3)


def test_milestones_end_with_the_training():
    cfg = load('fcos_replknet_31b_coco')
    set_max_epochs(cfg, 12)
    assert cfg.param_scheduler[1].end == 12
    assert cfg.param_scheduler[0].end == 500  # iterations of warm-up


@pytest.mark.parametrize('new', [1, 2, 8])
def test_accumulation_and_what_depends_on_it(new):
    cfg = load('pretrain/pelk_t_300e_in1k')
    before = Config.fromfile(cfg.filename)
    set_accumulation(cfg, new)
    assert cfg.optim_wrapper.accumulative_counts == new
    assert cfg.default_hooks.ema.interval == new
    assert cfg.auto_scale_lr.base_batch_size == 4096 // new
    assert cfg.optim_wrapper.optimizer == before.optim_wrapper.optimizer


def test_accumulation_where_there_was_none():
    cfg = load('upernet_pelk_t_ade20k')
    cfg.custom_hooks = [dict(type='EMAHook'), dict(type='EMAHook', interval=7)]
    set_accumulation(cfg, 4)
    assert cfg.optim_wrapper.accumulative_counts == 4
    assert cfg.auto_scale_lr.base_batch_size == 4
    # The first followed every step, the second had an interval of its own.
    assert [hook.get('interval') for hook in cfg.custom_hooks] == [4, 7]
    with pytest.raises(ValueError, match='3 does not divide the 16 images of a step'):
        set_accumulation(cfg, 3)
    with pytest.raises(ValueError, match='accumulative_counts 0 must be a positive'):
        set_accumulation(cfg, 0)
    with pytest.raises(ValueError, match='there is no optim_wrapper'):
        set_accumulation(Config(), 2)


@pytest.mark.parametrize('wrong', ['', 'text', None, 3])
def test_other_values_in_the_place_of_dicts(wrong):
    keys = ('model', 'train_cfg', 'param_scheduler', 'optim_wrapper', 'auto_scale_lr')
    for cfg in (
        Config(dict.fromkeys(keys, wrong)),
        Config(dict(model=dict(data_preprocessor=wrong, test_cfg=wrong))),
    ):
        with pytest.raises(ValueError, match='no head in model has num_classes'):
            set_num_classes(cfg, 2)
        with pytest.raises(ValueError, match='needs a segmenter with RandomCrop'):
            set_crop_size(cfg, 64)
        with pytest.raises(ValueError, match='the training counts iterations'):
            set_max_epochs(cfg, 3)
        with pytest.raises(ValueError, match='there is no optim_wrapper'):
            set_accumulation(cfg, 2)
