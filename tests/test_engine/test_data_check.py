import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from pelk_mm.engine import SegDataCheckHook, data_check

NAMES = ('sky', 'road', 'car')


class Head(nn.Module):
    def __init__(self, num_classes=3, out_channels=None, sigmoid=False, **attributes):
        super().__init__()
        self.num_classes = num_classes
        self.out_channels = out_channels or num_classes
        self.loss_decode = nn.Module()
        self.loss_decode.use_sigmoid = sigmoid
        for name, value in attributes.items():
            setattr(self, name, value)


class Parts(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class Data:
    def __init__(self, classes=NAMES, labels=()):
        self.metainfo = {} if classes is None else dict(classes=classes)
        self.samples = batch(*labels)['data_samples']

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        random.random()
        np.random.rand()
        return dict(data_samples=self.samples[index])


def loop(kind=IterBasedTrainLoop, sampler=InfiniteSampler, data=None):
    made = kind.__new__(kind)
    made._dataloader = None
    made.dataloader = SimpleNamespace(
        dataset=Data() if data is None else data, sampler=sampler.__new__(sampler)
    )
    return made


def runner(model, train=None, val=None, test=None, cfg=None):
    return SimpleNamespace(
        model=model,
        cfg=Config(cfg or {}),
        train_loop=train or loop(),
        val_loop=val,
        test_loop=test,
    )


MODELS = {
    'a head': lambda n: Parts(decode_head=Head(n)),
    'an auxiliary head': lambda n: Parts(decode_head=Head(), auxiliary_head=Head(n)),
    'one of a cascade': lambda n: Parts(decode_head=nn.ModuleList([Head(), Head(n)])),
    'of a student': lambda n: Parts(student=Parts(decode_head=Head(n))),
    'under DDP': lambda n: Parts(module=Parts(decode_head=Head(n))),
}


@pytest.mark.parametrize('model', MODELS.values(), ids=MODELS)
@pytest.mark.parametrize('number', [1, 2, 4, 150])
def test_another_number_of_classes_is_refused(model, number):
    hook = SegDataCheckHook()
    wrong = runner(model(number), val=loop(), test=loop())
    message = (
        f'head.* has num_classes={number}, the Data of .*3 classes: sky, road, car'
    )
    for check, place in (
        (hook.before_train, 'train'),
        (hook.before_val, 'val'),
        (hook.before_test, 'test'),
    ):
        with pytest.raises(ValueError, match=message) as error:
            check(wrong)
        assert f'{place}_dataloader.dataset' in str(error.value)
        assert 'num_classes=3 in every head' in str(error.value)
        assert 'set_num_classes' in str(error.value)
        assert 'model.module' not in str(error.value)


@pytest.mark.parametrize('model', MODELS.values(), ids=MODELS)
def test_equal_numbers_pass(model):
    hook = SegDataCheckHook()
    right = runner(model(3), val=loop(), test=loop())
    hook.before_train(right)
    hook.before_val(right)
    hook.before_test(right)


def test_what_is_no_head_of_the_segmenter_may_have_other_classes():
    backbone = Parts()
    backbone.num_classes = 1000
    SegDataCheckHook().before_train(
        runner(Parts(backbone=backbone, decode_head=Head(), image_head=Head(1)))
    )


def test_boundary_head_has_classes_of_its_own():
    class STDCHead(Head):
        pass

    model = Parts(decode_head=Head(), auxiliary_head=nn.ModuleList([STDCHead(2)]))
    SegDataCheckHook().before_train(runner(model))
    SegDataCheckHook().before_train_iter(runner(model), 0, batch([2]))


@pytest.mark.parametrize('number', [1, 2])
def test_two_classes_in_one_channel(number):
    model = Parts(decode_head=Head(number, out_channels=1, sigmoid=True))
    hook = SegDataCheckHook()
    hook.before_train(runner(model, loop(data=Data(('no', 'yes')))))
    with pytest.raises(ValueError, match='3 classes'):
        hook.before_train(runner(model))


def test_validation_set_is_checked_before_training():
    other = loop(data=Data((*NAMES, 'tree')))
    with pytest.raises(ValueError, match=r'val_dataloader.dataset has 4 classes'):
        SegDataCheckHook().before_train(runner(Parts(decode_head=Head()), val=other))


@pytest.mark.parametrize(
    ('classes', 'message'),
    [(None, 'names no classes; set train_dataloader'), ('sky', "is \\('sky',\\)")],
)
def test_classes_that_cannot_be_counted(classes, message):
    with pytest.raises(ValueError, match=message):
        SegDataCheckHook().before_train(
            runner(Parts(decode_head=Head()), loop(data=Data(classes)))
        )


def test_epochs_need_a_sampler_that_ends():
    model = Parts(decode_head=Head())
    with pytest.raises(ValueError, match='never end an epoch .*DefaultSampler'):
        SegDataCheckHook().before_train(runner(model, loop(EpochBasedTrainLoop)))
    SegDataCheckHook().before_train(
        runner(model, loop(EpochBasedTrainLoop, DefaultSampler))
    )


def batch(*labels):
    samples = []
    for number, values in enumerate(labels):
        sample = SegDataSample(metainfo=dict(seg_map_path=f'maps/{number}.png'))
        data = torch.tensor(values).reshape(1, 1, -1)
        sample.gt_sem_seg = PixelData(data=data)
        samples.append(sample)
    return dict(inputs=None, data_samples=samples)


@pytest.mark.parametrize('mode', ['train', 'val', 'test'])
def test_label_beyond_the_classes_is_named(mode):
    check = getattr(SegDataCheckHook(), f'before_{mode}_iter')
    model = Parts(decode_head=Head())
    check(runner(model), 0, batch([0, 1, 2, 255], [255, 255]))
    with pytest.raises(ValueError, match='classes 0 to 2 and ignores 255') as error:
        check(runner(model), 0, batch([0, 1], [0, 3, 7, 255, 7]))
    assert 'label 3, 7 in maps/1.png: model.decode_head' in str(error.value)
    assert f'{mode}_dataloader.dataset.reduce_zero_label=True' in str(error.value)


def test_first_images_are_looked_at_before_training():
    """Before other hooks compute a loss; the random numbers stay as they were."""
    hook = SegDataCheckHook()
    states = random.getstate(), np.random.get_state()[1].tolist()
    labels = [[0, 1]] * 3
    model = Parts(decode_head=Head())
    hook.before_train(runner(model, loop(data=Data(labels=labels))))
    with pytest.raises(ValueError, match='label 3 in maps/3.png'):
        hook.before_train(runner(model, loop(data=Data(labels=[*labels, [3]]))))
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    # The others are looked at when their batch comes.
    hook.before_train(runner(model, loop(data=Data(labels=[*labels * 3, [3]]))))


def test_labels_that_a_head_takes():
    hook = SegDataCheckHook()
    ignoring = Parts(decode_head=Head(ignore_index=7))
    hook.before_train_iter(runner(ignoring), 0, batch([0, 2, 7]))
    with pytest.raises(ValueError, match='label 255 .* ignores 7'):
        hook.before_train_iter(runner(ignoring), 0, batch([0, 2, 255]))
    # A sigmoid per class: a label of none is the background.
    hook.before_train_iter(runner(Parts(decode_head=Head(sigmoid=True))), 0, batch([9]))
    # Depth, not classes.
    hook.before_train_iter(runner(ignoring), 0, batch([0.5, 9.5]))
    # No labels, as in testing, or views of test-time augmentation.
    hook.before_test_iter(runner(ignoring), 0, dict(inputs=[], data_samples=[[]]))
    hook.before_test_iter(runner(ignoring), 0, [1, 2])


@pytest.mark.parametrize(
    ('changes', 'warned'),
    [
        ({}, False),
        ({'crop_size': (64, 64)}, True),
        ({'model.data_preprocessor.size': (64, 64)}, True),
        ({'model.test_cfg.crop_size': (64, 64)}, True),
        ({'model.test_cfg': dict(mode='whole', crop_size=(64, 64))}, False),
        ({'train_dataloader.dataset.pipeline.0.crop_size': (64, 64)}, True),
    ],
)
def test_crop_sizes_that_differ_are_logged(changes, warned, monkeypatch):
    lines = []
    monkeypatch.setattr(data_check, 'print_log', lambda line, **_: lines.append(line))
    cfg = Config(
        dict(
            crop_size=(32, 32),
            model=dict(
                data_preprocessor=dict(size=(32, 32)),
                test_cfg=dict(mode='slide', crop_size=(32, 32), stride=(21, 21)),
            ),
            train_dataloader=dict(
                dataset=dict(pipeline=[dict(type='RandomCrop', crop_size=(32, 32))])
            ),
        )
    )
    cfg.merge_from_dict(changes)
    made = runner(Parts(decode_head=Head()))
    made.cfg = cfg
    SegDataCheckHook().before_train(made)
    assert len(lines) == warned
    if warned:
        assert '(64, 64)' in lines[0]
        assert 'set_crop_size' in lines[0]
