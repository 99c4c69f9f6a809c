import cv2
import numpy as np
import pytest

from object_size import SIZES, RecallBySize


def squares(sides, value=1, canvas=(64, 160)):
    """Squares of these sides next to each other, of one class on void."""
    labels = np.full(canvas, 255, np.uint8)
    left = 1
    for side in sides:
        labels[1 : 1 + side, left : left + side] = value
        left += side + 2
    return labels


def test_a_third_of_the_objects_in_each_group():
    truth = squares([1, 2, 3, 4, 10, 20])
    prediction = np.where(truth == 1, 0, 0).astype(np.uint8)
    prediction[1:2, 1:2] = 1  # the smallest, 1 of the group's 1 + 4 pixels
    prediction[1:11, 19:29] = 1  # the fifth, 100 of 100 + 400
    sizes = RecallBySize(2)
    sizes.add(truth, prediction)
    assert sizes.counts() == {1: 6}
    assert len(SIZES) == 3
    assert sizes.recalls() == {1: [20.0, 0.0, 20.0]}


def test_images_are_taken_together_and_classes_apart():
    sizes = RecallBySize(3)
    for side, right in ((2, True), (4, False), (8, True)):
        truth = squares([side])
        sizes.add(truth, np.where(truth == 1, 1 if right else 2, 0))
    # Two objects are too few for three groups.
    sizes.add(squares([5, 5], value=2), np.full((64, 160), 2))
    assert sizes.recalls() == {1: [100.0, 0.0, 100.0]}
    assert sizes.counts() == {1: 3, 2: 2}


def test_corners_join_and_void_counts_nowhere():
    truth = np.array([[0, 255, 255], [255, 0, 255], [255, 255, 1]])
    sizes = RecallBySize(2)
    sizes.add(truth, np.zeros_like(truth))
    assert sizes.counts() == {0: 1, 1: 1}


@pytest.mark.parametrize('seed', range(3))
def test_pixels_of_all_groups_are_the_classes_pixels(seed):
    rng = np.random.default_rng(seed)
    truth = cv2.resize(
        rng.integers(0, 4, (12, 16), dtype=np.uint8), (64, 48), interpolation=0
    )
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, 0)
    sizes = RecallBySize(4)
    sizes.add(truth, prediction)
    for label, recalls in sizes.recalls().items():
        whole = 100 * (prediction[truth == label] == label).mean()
        assert min(recalls) <= whole <= max(recalls)
