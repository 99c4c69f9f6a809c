"""Dynamic sparsity: masks, their initialisers, their updates, and the hook."""

from .growth import prune_and_grow, prune_rate
from .hook import DynamicSparsityHook
from .initializers import allocate, draw_masks, erk, masks_from_zeros, snip, uniform
from .masks import SparsityMasks, select_parameters
from .snip import snip_scores

__all__ = [
    'DynamicSparsityHook',
    'SparsityMasks',
    'allocate',
    'draw_masks',
    'erk',
    'masks_from_zeros',
    'prune_and_grow',
    'prune_rate',
    'select_parameters',
    'snip',
    'snip_scores',
    'uniform',
]
