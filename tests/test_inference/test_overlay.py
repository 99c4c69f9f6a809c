"""Overlays and legends: the right colours, the classes there, nothing cut off."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pelk_mm.inference.models import Segmentation
from pelk_mm.inference.overlay import (
    Entry,
    add_legend,
    detection_legend,
    draw_result,
    paint_segmentation,
    segmentation_legend,
    share_text,
)


def labels_of(counts, width):
    return np.repeat(np.arange(len(counts)), counts).reshape(-1, width)


def test_legend_has_the_classes_there_by_their_shares(segmenter):
    labels = labels_of([10, 0, 29, 1], 8)
    assert segmentation_legend(segmenter, labels) == [
        Entry('tree & <b>bush</b>', (40, 140, 60), '72.5%'),
        Entry('ground', (120, 90, 40), '25.0%'),
        Entry('boat', (200, 60, 50), '2.5%'),
    ]
    assert share_text(0.00049) == '< 0.1%'
    assert share_text(1) == '100.0%'


def test_classes_without_a_name_have_their_number(segmenter):
    (entry,) = segmentation_legend(segmenter, np.full((2, 2), 7))
    assert entry.name == 'class 7'


@pytest.mark.parametrize('shape', [(600, 800), (5, 700), (700, 1)])
def test_painted_pixels(segmenter, shape):
    labels = np.zeros(shape, np.int64)
    labels[: shape[0] // 2] = 3
    image = np.full((*shape, 3), (0, 100, 200), np.uint8)
    picture = paint_segmentation(segmenter, image, labels)
    assert picture.shape == (*shape, 3)
    for index, pixel in ((labels[0, 0], picture[0, 0]), (0, picture[-1, -1])):
        expected = (np.array(segmenter.palette[index]) + (200, 100, 0)) / 2
        assert np.abs(pixel - expected).max() <= 1


def test_small_images_are_enlarged_by_a_whole_factor(segmenter, image):
    result = segmenter.predict(image)
    picture, legend = draw_result(segmenter, image, result)
    assert picture.shape == (5 * 64, 5 * 96, 3)
    assert len(legend) == len(np.unique(result.labels))
    centres = picture[2::5, 2::5].astype(int)
    colours = np.array(segmenter.palette)[result.labels]
    assert np.abs(centres - (colours + image[..., ::-1]) / 2).max() < 40


@pytest.mark.parametrize('count', [0, 1, 5, 150])
@pytest.mark.parametrize('shape', [(480, 640), (60, 512), (512, 20)])
def test_every_line_has_a_place(count, shape):
    picture = np.full((*shape, 3), 77, np.uint8)
    colours = [(i + 1, 250 - i, 3) for i in range(count)]
    entries = [Entry(f'a class {i}', c, '1.2%') for i, c in enumerate(colours)]
    result = add_legend(picture, entries)
    height, width = shape
    assert (result[:height, :width] == 77).all()
    legend = result[:, width:]
    assert legend.shape[0] >= height
    codes = np.unique(legend.reshape(-1, 3).astype(int) @ (65536, 256, 1))
    assert {r * 65536 + g * 256 + b for r, g, b in colours} <= set(codes.tolist())
    # A margin of white all round: nothing is cut off.
    assert (legend[-3:] == 255).all()
    assert (legend[:, -3:] == 255).all()
    assert (legend < 128).any()


def test_long_and_broken_names():
    picture = np.zeros((200, 300, 3), np.uint8)
    long = [Entry('word\n' * 50, (1, 2, 3), '3%'), Entry('', (4, 5, 6), '')]
    assert add_legend(picture, long).shape[1] < 800


def test_fixed_legends_have_one_size():
    picture = np.zeros((241, 321, 3), np.uint8)
    shapes = {
        add_legend(picture, [Entry('x' * n, (9, 9, 9), '1%')] * n, fixed=True).shape
        for n in (0, 1, 7, 60)
    }
    assert len(shapes) == 1
    height, width, _ = shapes.pop()
    assert (height, width % 2) == (242, 0)


def test_objects_are_counted_by_class(segmenter):
    sample = SimpleNamespace(
        pred_instances=SimpleNamespace(
            labels=torch.tensor([1, 0, 1, 3, 1]),
            scores=torch.tensor([0.5, 0.91, 0.6, 0.2, 0.1]),
        )
    )
    assert detection_legend(segmenter, sample, 0.3) == [
        Entry('ground', (120, 90, 40), 'score 0.91'),
        Entry('sky', (90, 150, 230), '2 x, score 0.60'),
    ]
    assert detection_legend(segmenter, sample, 0.95) == []


def test_label_maps_of_many_classes(segmenter):
    labels = np.arange(600).reshape(20, 30)
    image = np.zeros((20, 30, 3), np.uint8)
    result = Segmentation(labels, torch.zeros(600, 20, 30), 0.1)
    picture, legend = draw_result(segmenter, image, result)
    assert len(legend) == 600
    assert add_legend(picture, legend).shape[0] >= picture.shape[0]
