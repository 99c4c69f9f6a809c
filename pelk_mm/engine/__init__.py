"""Parts that plug into mmengine: checkpoint safety, layer decay, SyncBN."""

from .checkpoint import load_weights_only
from .layer_decay import LargeKernelLayerDecayOptimizerConstructor
from .sync_bn import RevertSyncBNHook

__all__ = [
    'LargeKernelLayerDecayOptimizerConstructor',
    'RevertSyncBNHook',
    'load_weights_only',
]
