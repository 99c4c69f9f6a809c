"""Stop a training whose processes would wait for each other's data in vain."""

from collections.abc import Sized
from typing import Any

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from .data_check import DataCheckError


@HOOKS.register_module()
class RankDataHook(Hook):
    """Check that all processes of a training have the same amount of data.

    They average their gradients in every iteration. One whose epoch ends earlier goes
    on to the next, or leaves, while the others wait for its gradient: until a timeout,
    or for good. With data sets that differ, say because a machine has an older copy,
    the samplers divide different lists: some images are seen twice and some never.

    Raises:
        DataCheckError: At the start, in every process, if they have found different
            numbers of samples or, in a loop over epochs, of batches; at the end of an
            epoch, in the process whose sampler had fewer batches than it promised. The
            launcher then ends the others.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._batches = 0

    def before_train(self, runner: Runner) -> None:
        """Compare the numbers of samples and batches."""
        if get_world_size() == 1:
            return
        loader = runner.train_loop.dataloader
        counts = []
        if isinstance(loader.dataset, Sized):  # a stream has no length
            counts.append(('samples', len(loader.dataset)))
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            counts.append(('batches per epoch', len(loader)))
        for (what, own), *others in zip(*all_gather_object(counts), strict=True):
            different = {
                rank: number
                for rank, (_, number) in enumerate(others, 1)
                if number != own
            }
            if different:
                listed = ', '.join(f'{n} in rank {r}' for r, n in different.items())
                raise DataCheckError(
                    f'train_dataloader has {own} {what} in rank 0, but {listed}; '
                    + (
                        'give every machine the same files and filter_cfg'
                        if what == 'samples'
                        else 'let its sampler repeat samples until all ranks have as '
                        "many: dict(type='DefaultSampler', round_up=True)"
                    )
                )

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin to count."""
        self._batches = 0

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Count a batch."""
        self._batches += 1

    def after_train_epoch(self, runner: Runner) -> None:
        """Compare with the promise; without the others, who may still be waiting."""
        loop = runner.train_loop
        if get_world_size() == 1 or not isinstance(loop, EpochBasedTrainLoop):
            return
        promised = len(loop.dataloader)
        if self._batches != promised:
            raise DataCheckError(
                f'the training data of rank {get_rank()} ended after '
                f'{self._batches} of {promised} batches; '
                f'{type(loop.dataloader.sampler).__name__} or the batch sampler yields '
                'less than its length, and the other ranks would wait for the rest'
            )
