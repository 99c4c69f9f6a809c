"""Parts that plug into mmengine: checkpoint safety, layer decay, SyncBN, seeds."""

from .checkpoint import load_weights_only
from .layer_decay import LargeKernelLayerDecayOptimizerConstructor
from .random_state import IterationSeedHook
from .sync_bn import RevertSyncBNHook

__all__ = [
    'IterationSeedHook',
    'LargeKernelLayerDecayOptimizerConstructor',
    'RevertSyncBNHook',
    'load_weights_only',
]
