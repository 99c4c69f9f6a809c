"""How much of the ground truth is found, by the size of the objects."""

from collections import defaultdict

import cv2
import numpy as np

#: Names of the groups of objects, each with a third of a class's.
SIZES = ('small', 'medium', 'large')

#: What the figures are, for those who read a table of them.
DEFINITION = (
    'An object is an 8-connected region of one class in the ground truth; the objects '
    'of each class are split by area into three groups of equal number, and the figure '
    'is the share of the pixels of a group that are predicted as their class, in '
    'percent, averaged over the classes.'
)


class RecallBySize:
    """Recall of the pixels of small, medium and large objects of each class.

    See `DEFINITION`. The groups are those of the images that were added, so that models
    are compared on the same ones.
    """

    def __init__(self, classes: int) -> None:
        #: Of each class the area of every object and how much of it was found.
        self._objects: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._classes = classes

    def add(self, ground_truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count the objects of an image.

        Args:
            ground_truth: Classes, (H, W); other values than 0 to classes - 1 are no
                objects.
            prediction: Classes, (H, W).
        """
        found = ground_truth == prediction
        for label in np.unique(ground_truth).tolist():
            if label >= self._classes:
                continue
            mask = (ground_truth == label).astype(np.uint8)
            number, regions = cv2.connectedComponents(mask, connectivity=8)
            areas = np.bincount(regions.ravel(), minlength=number)[1:]
            hits = np.bincount(regions[found].ravel(), minlength=number)[1:]
            self._objects[label] += zip(areas.tolist(), hits.tolist(), strict=True)

    def recalls(self) -> dict[int, list[float]]:
        """Recall of each group in percent, in the order of `SIZES`, by class.

        Classes with fewer objects than groups are left out.
        """
        recalls = {}
        for label, objects in sorted(self._objects.items()):
            if len(objects) < len(SIZES):
                continue
            # The hits must not decide which of two equal areas is the larger.
            ordered = sorted(objects, key=lambda entry: entry[0])
            groups = np.array_split(np.array(ordered), len(SIZES))
            recalls[label] = [
                float(100 * group[:, 1].sum() / group[:, 0].sum()) for group in groups
            ]
        return recalls

    def counts(self) -> dict[int, int]:
        """Number of objects by class."""
        return {label: len(each) for label, each in sorted(self._objects.items())}
