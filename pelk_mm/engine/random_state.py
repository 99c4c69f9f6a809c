"""Random numbers that a resumed run draws as the uninterrupted one did."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, any device's.

    Args:
        seed: Any integer; its lowest 32 bits count.
    """
    seed %= 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Give all generators back their state afterwards."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class _SeededIterator:
    """A data iterator that seeds the generators before every batch."""

    def __init__(self, iterator: Iterator[Any], seed: int) -> None:
        self.iterator = iterator
        self.seed = seed
        self.batches = 0

    def __iter__(self) -> '_SeededIterator':
        return self

    def __next__(self) -> Any:
        seed_everything(self.seed + self.batches)
        self.batches += 1
        return next(self.iterator)


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Draw the random numbers of an iteration from its own seed.

    mmengine saves no generator in a checkpoint: after a resume, dropout, drop path
    and augmentation in the main process differ from the uninterrupted run. With
    this hook they are a function of seed, rank and iteration, so that they do not;
    nothing has to be saved, and what validation draws in between does not matter.
    The run's seed has to be set: ``randomness=dict(seed=0)``.
    """

    priority = 'VERY_HIGH'

    #: Distance of the streams of two ranks, more than the iterations of any run.
    RANK_STRIDE = 104_395_301

    def _seed(self, runner: Runner) -> int:
        return runner.seed + self.RANK_STRIDE * get_rank()

    def before_train_epoch(self, runner: Runner) -> None:
        """Take hold of the data stream, which a resume winds on after this."""
        loop = runner.train_loop
        if hasattr(loop, 'dataloader_iterator'):
            loop.dataloader_iterator = _SeededIterator(
                loop.dataloader_iterator, self._seed(runner)
            )
        else:  # an epoch-based loop makes its iterator next; it resumes at epochs
            seed_everything(self._seed(runner) + runner.iter)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Seed what the model draws."""
        seed_everything(self._seed(runner) + runner.iter)
