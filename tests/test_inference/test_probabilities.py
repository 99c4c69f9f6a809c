"""The most probable classes of each pixel."""

import numpy as np
import pytest
import torch

from pelk_mm.inference.models import Segmentation
from pelk_mm.inference.probabilities import TOP, top_classes


def test_they_are_the_softmax_s(segmenter, image):
    result = segmenter.predict(image)
    top = top_classes(result)
    shares = result.scores.softmax(0).numpy()
    assert top.classes.shape == (4, 64, 96)
    assert np.array_equal(top.classes[0], result.labels)
    assert np.allclose(top.probabilities.sum(0), 1, atol=2e-3)
    for row, column in ((0, 0), (63, 95), (31, 50)):
        found = top.at((column + 0.5) / 96, (row + 0.5) / 64)
        assert [share for _, share in found] == pytest.approx(
            sorted(shares[:, row, column], reverse=True), abs=1e-3
        )
        assert found[0][0] == result.labels[row, column]


def test_many_classes_and_rows():
    scores = torch.randn(150, 130, 3)
    top = top_classes(Segmentation(np.zeros((130, 3)), scores, 0.1))
    values, indices = scores.softmax(0).topk(TOP, 0)
    assert np.array_equal(top.classes, indices.numpy())
    assert np.allclose(top.probabilities, values, atol=1e-3)


def test_one_channel_is_two_classes():
    scores = torch.tensor([[[-2.0, 3.0]]])
    top = top_classes(Segmentation(np.array([[0, 1]]), scores, 0.1))
    assert top.at(0.1, 0.5) == [
        (0, pytest.approx(0.881, abs=1e-3)),
        (1, pytest.approx(0.119, abs=1e-3)),
    ]
    assert top.at(0.9, 0.5)[0] == (1, pytest.approx(0.953, abs=1e-3))


@pytest.mark.parametrize(('x', 'column'), [(-1, 0), (0, 0), (0.999, 1), (1, 1), (9, 1)])
def test_points_outside_are_on_the_edge(x, column):
    scores = torch.tensor([[[5.0, 0.0]], [[0.0, 5.0]]])
    top = top_classes(Segmentation(np.array([[0, 1]]), scores, 0.1))
    assert top.at(x, x)[0][0] == column
