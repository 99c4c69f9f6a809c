"""Labels for a pre-training, made from the label maps of a segmenter's images."""

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ClassPresence(BaseTransform):
    """Label an image by the classes that its label map shows.

    For mmpretrain's multi-label classifiers, after the steps that load, resize and crop
    image and label map together, and before ``PackInputs``: a backbone is pre-trained
    on a segmenter's own images.

    Required Keys:

    - gt_seg_map

    Added Keys:

    - gt_score (float32, (num_classes,)): 1 for each class that is there, else 0.

    Args:
        num_classes: Number of classes. Labels from there on, as 255, are no class.
        min_share: Share of the pixels, 0 to 1, from which on a class counts as there.
            0: one pixel is enough.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, num_classes: int, min_share: float = 0.0) -> None:
        if num_classes < 1:
            raise ValueError(f'num_classes must be 1 or more, got {num_classes}')
        if not 0 <= min_share <= 1:
            raise ValueError(f'min_share must be from 0 to 1, got {min_share}')
        self._num_classes = num_classes
        self._min_share = min_share

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add the labels.

        Raises:
            KeyError: If there is no label map.
        """
        if 'gt_seg_map' not in results:
            raise KeyError(
                'ClassPresence needs gt_seg_map; put '
                "dict(type='mmseg.LoadAnnotations') before it in the pipeline"
            )
        labels = results['gt_seg_map']
        pixels = np.bincount(labels.ravel(), minlength=self._num_classes)
        pixels = pixels[: self._num_classes]
        present = (pixels > 0) & (pixels >= self._min_share * labels.size)
        results['gt_score'] = present.astype(np.float32)
        return results

    def __repr__(self) -> str:
        """Name and arguments."""
        return (
            f'{type(self).__name__}(num_classes={self._num_classes}, '
            f'min_share={self._min_share})'
        )
