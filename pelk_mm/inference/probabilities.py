"""The most probable classes of each pixel, small enough to keep for a page."""

from typing import NamedTuple

import numpy as np
import torch

from .models import Segmentation

#: Classes that are kept per pixel.
TOP = 5
#: Rows that are sorted at once, for the memory that all of an image would take.
_ROWS = 64


class TopClasses(NamedTuple):
    """The most probable classes of each pixel, the most probable first.

    Attributes:
        classes: (K, H, W).
        probabilities: (K, H, W), from 0 to 1.
    """

    classes: np.ndarray
    probabilities: np.ndarray

    def at(self, x: float, y: float) -> list[tuple[int, float]]:
        """Classes and probabilities of a pixel.

        Args:
            x: Where it is between the left edge of the image, 0, and the right one, 1.
            y: Where it is between the upper edge, 0, and the lower one, 1.
        """
        height, width = self.classes.shape[1:]
        row = min(max(int(y * height), 0), height - 1)
        column = min(max(int(x * width), 0), width - 1)
        return [
            (int(index), float(share))
            for index, share in zip(
                self.classes[:, row, column],
                self.probabilities[:, row, column],
                strict=True,
            )
        ]


def top_classes(result: Segmentation) -> TopClasses:
    """The most probable classes of each pixel of a prediction.

    Scores become probabilities by softmax over the classes, those of a model with one
    channel by the sigmoid function.

    Args:
        result: The prediction; its scores are (C, H, W).

    Returns:
        At most `TOP` classes.
    """
    classes, probabilities = [], []
    for rows in result.scores.float().split(_ROWS, dim=1):
        if rows.shape[0] == 1:
            second = rows.sigmoid()
            shares = torch.cat([1 - second, second])
        else:
            shares = rows.softmax(0)
        top = shares.topk(min(TOP, shares.shape[0]), dim=0)
        classes.append(top.indices.numpy().astype(np.uint16))
        probabilities.append(top.values.numpy().astype(np.float16))
    return TopClasses(np.concatenate(classes, 1), np.concatenate(probabilities, 1))
