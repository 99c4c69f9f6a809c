"""Parts that plug into mmengine: layer decay, seeds."""

from .layer_decay import LargeKernelLayerDecayOptimizerConstructor
from .random_state import IterationSeedHook

__all__ = ['IterationSeedHook', 'LargeKernelLayerDecayOptimizerConstructor']
