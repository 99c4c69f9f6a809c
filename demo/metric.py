"""mmseg's IoUMetric with a table of the classes at hand."""

import torch
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class OccurringIoUMetric(IoUMetric):
    """IoUMetric whose logged table leaves out classes that occur nowhere.

    A class that is neither in the ground truth nor in a prediction has no score. Its
    row of dashes goes, the scores stay what they are.
    """

    default_prefix = ''  # none, said outright: None makes mmengine warn

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        """Score the classes that are in the ground truth or in a prediction.

        Args:
            results: Of each image the areas of intersection, union, prediction and
                ground truth of each class, as `process` collected them.

        Returns:
            What mmseg's IoUMetric returns.
        """
        if not results:
            return super().compute_metrics(results)
        occurring = sum(union for _, union, _, _ in results) > 0
        every_class = self.dataset_meta
        names = every_class['classes']
        self.dataset_meta = dict(
            every_class, classes=[names[i] for i in torch.where(occurring)[0]]
        )
        try:
            return super().compute_metrics(
                [tuple(area[occurring] for area in areas) for areas in results]
            )
        finally:
            self.dataset_meta = every_class
