"""Random numbers that a resumed run draws as the uninterrupted one did."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import mmengine
import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import (
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    Runner,
    set_random_seed,
)
from torch.utils.data import DataLoader


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore the state of Python's, numpy's and torch's generators afterwards."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _seed_workers(loader: DataLoader, seed: int) -> None:
    """Have the next iterator start its workers anew, from another seed than the run's.

    mmengine's own is the same in every epoch and, where workers persist, only that of
    the first: what they draw later depends on all that they have drawn before.
    """
    init = loader.worker_init_fn
    if loader.num_workers and isinstance(init, partial) and 'seed' in init.keywords:
        # mmengine adds the worker's number, and numpy takes no seed of 2**32.
        loader.worker_init_fn = partial(init, seed=seed % 2**31)
        loader._iterator = None


class _SeededIterator:
    """A data iterator that seeds the generators before every batch.

    Args:
        iterator: The iterator of an ``IterBasedTrainLoop``.
        seed: Seed of batch 0; batch i has ``seed + i``.
    """

    def __init__(self, iterator: Any, seed: int) -> None:
        self.iterator = iterator
        self.seed = seed
        self.batches = 0

    def __next__(self) -> Any:
        set_random_seed((self.seed + self.batches) % 2**32)
        self.batches += 1
        return next(self.iterator)

    def skip_iter(self, num_iters: int) -> None:
        """Skip batches, as onedl-mmengine resumes; OpenMMLab's draws them instead."""
        self.iterator.skip_iter(num_iters)
        self.batches += num_iters


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Draw the random numbers of an iteration from its own seed.

    mmengine saves no generator in a checkpoint: after a resume, dropout, drop path
    and augmentation in the main process differ from the uninterrupted run. With
    this hook they are a function of seed, rank and iteration, so they are the same;
    nothing has to be saved, and what validation draws in between does not matter.
    The run's seed has to be set: ``randomness=dict(seed=0)``.

    Data loader workers are seeded when they start. In epoch-based training they are
    started anew in every epoch, with ``persistent_workers=True`` too, from that epoch's
    seed. So what they draw repeats as well, except in iteration-based training with
    onedl-mmengine, which skips data without loading it.

    Raises:
        RuntimeError: At the start of the training, if its loop is neither mmengine's
            ``EpochBasedTrainLoop`` nor its ``IterBasedTrainLoop``.
    """

    priority = 'VERY_HIGH'

    #: Distance of the streams of two ranks, more than the iterations of any run;
    #: mmengine's own ``diff_rank_seed`` has 1, where streams overlap.
    RANK_STRIDE = 104_395_301

    def _seed(self, runner: Runner, iteration: int) -> int:
        """The seed of an iteration on this rank, in [0, 2**32)."""
        return (runner.seed + self.RANK_STRIDE * get_rank() + iteration) % 2**32

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed what the data loader draws in the main process."""
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop):
            # It makes its data iterator next, and resumes only between epochs.
            seed = self._seed(runner, runner.iter)
            set_random_seed(seed)
            _seed_workers(loop.dataloader, seed)
            return
        if not isinstance(loop, IterBasedTrainLoop) or not hasattr(
            loop, 'dataloader_iterator'
        ):
            raise RuntimeError(
                f'IterationSeedHook cannot seed the data of {type(loop).__name__} in '
                f'mmengine {mmengine.__version__}: it knows EpochBasedTrainLoop, and '
                'IterBasedTrainLoop with its dataloader_iterator; train with one of '
                'these or without the hook'
            )
        seed = self._seed(runner, 0)
        if loop.dataloader.generator is None:
            # onedl-mmengine makes the loader's iterator as late as the first batch,
            # and making it draws a number: not from the generator just seeded.
            loop.dataloader.generator = torch.Generator().manual_seed(seed)
        loop.dataloader_iterator = _SeededIterator(loop.dataloader_iterator, seed)

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Seed what the model draws."""
        set_random_seed(self._seed(runner, runner.iter))
