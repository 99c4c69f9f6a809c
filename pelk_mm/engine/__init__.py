"""Parts that plug into mmengine: checkpoint safety, layer decay, seeds."""

from .checkpoint import load_weights_only
from .layer_decay import LargeKernelLayerDecayOptimizerConstructor
from .random_state import IterationSeedHook

__all__ = [
    'IterationSeedHook',
    'LargeKernelLayerDecayOptimizerConstructor',
    'load_weights_only',
]
