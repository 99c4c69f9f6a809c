"""A data set that convolves, in a module that spawned workers can import."""

import torch
from torch.utils.data import Dataset

from pelk_mm.ops import peripheral_conv2d

GRID = (4, 2, 1, 1, 1, 2, 4)


class Convolved(Dataset):
    """Maps that are convolved where they are loaded.

    Args:
        backend: What convolves them.
        threads: Threads that a worker computes with; a data loader gives it one.
    """

    def __init__(self, backend, threads):
        self.backend, self.threads = backend, threads

    def __len__(self):
        return 4

    def __getitem__(self, index):
        torch.set_num_threads(self.threads)
        draw = torch.Generator().manual_seed(index)
        x = torch.randn(1, 6, 20 + index, 30, generator=draw)
        weight = torch.randn(6, len(GRID), len(GRID), generator=draw)
        return peripheral_conv2d(x, weight, GRID, backend=self.backend)
