"""Parts that plug into mmengine: layer decay, seeds, checks, edits of configs."""

from .bfloat16 import Bfloat16OptimWrapper
from .checkpoint_hook import SafeCheckpointHook
from .class_presence import ClassPresence
from .config_edit import (
    set_accumulation,
    set_crop_size,
    set_max_epochs,
    set_num_classes,
)
from .data_check import SegDataCheckHook
from .finite_loss import FiniteLossHook
from .layer_decay import LargeKernelLayerDecayOptimizerConstructor
from .random_state import IterationSeedHook
from .rank_data import RankDataHook

__all__ = [
    'Bfloat16OptimWrapper',
    'ClassPresence',
    'FiniteLossHook',
    'IterationSeedHook',
    'LargeKernelLayerDecayOptimizerConstructor',
    'RankDataHook',
    'SafeCheckpointHook',
    'SegDataCheckHook',
    'set_accumulation',
    'set_crop_size',
    'set_max_epochs',
    'set_num_classes',
]
