"""Labels of images from the classes in their label maps."""

import numpy as np
import pytest
from mmengine.registry import TRANSFORMS

from pelk_mm.engine import ClassPresence


def present(labels, **settings):
    transform = ClassPresence(num_classes=4, **settings)
    return transform(dict(gt_seg_map=np.array(labels, np.uint8)))['gt_score'].tolist()


def test_classes_that_are_there():
    assert present([[0, 0, 255], [3, 3, 3]]) == [1, 0, 0, 1]


def test_none_is_there_in_void_alone_and_in_an_empty_map():
    assert present([[255, 4]]) == present(np.zeros((0, 3))) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ('min_share', 'expected'),
    [
        (0.0, [1, 1, 0, 1]),
        (0.25, [1, 1, 0, 0]),  # void counts among all pixels; the limit is inclusive
        (0.26, [1, 0, 0, 0]),
        (1.0, [0, 0, 0, 0]),
    ],
)
def test_a_share_of_the_pixels_is_asked_for(min_share, expected):
    labels = [[0, 0, 0, 1], [1, 255, 3, 0]]
    assert present(labels, min_share=min_share) == expected


def test_signed_label_maps_are_counted_too():
    labels = np.array([[0, 2]], np.int64)
    found = ClassPresence(num_classes=3)(dict(gt_seg_map=labels))['gt_score']
    assert found.dtype == np.float32
    assert found.tolist() == [1, 0, 1]


def test_built_by_its_name_and_told_by_its_arguments():
    transform = TRANSFORMS.build(dict(type='ClassPresence', num_classes=11))
    assert repr(transform) == 'ClassPresence(num_classes=11, min_share=0.0)'


@pytest.mark.parametrize(
    ('settings', 'named'),
    [
        (dict(num_classes=0), 'num_classes must be 1 or more, got 0'),
        (dict(num_classes=2, min_share=1.5), 'min_share must be from 0 to 1, got 1.5'),
        (dict(num_classes=2, min_share=float('nan')), 'min_share .* got nan'),
    ],
)
def test_bad_arguments_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        ClassPresence(**settings)


def test_missing_label_map_names_the_step_that_loads_it():
    with pytest.raises(KeyError, match=r'mmseg\.LoadAnnotations'):
        ClassPresence(num_classes=2)(dict(img_path='a.jpg'))
