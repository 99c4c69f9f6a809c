"""SyncBN where there is nothing to synchronise over."""

from mmengine.device import is_cuda_available
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.nn import SyncBatchNorm


@HOOKS.register_module()
class RevertSyncBNHook(Hook):
    """Turn SyncBN into BN on machines without CUDA, saying so once.

    mmengine does so in a single process; in several, SyncBN would stop at the first
    map that is not on a GPU. With this hook a config that names SyncBN runs there
    too. Parameters and statistics stay the same tensors, so optimisers, checkpoints
    and DistributedDataParallel notice nothing.
    """

    priority = 'HIGHEST'

    def before_run(self, runner: Runner) -> None:
        """Replace every SyncBN of the runner's model."""
        if is_cuda_available():
            return
        count = sum(isinstance(m, SyncBatchNorm) for m in runner.model.modules())
        if count:
            runner.model = revert_sync_batchnorm(runner.model)
            print_log(
                f'No CUDA device: {count} SyncBN layers run as BN.', logger='current'
            )
