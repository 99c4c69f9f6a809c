"""The compiled CPU kernels: their library, their costs and the backends they make."""

from .compiled import BACKENDS
from .library import instruction_set, instruction_sets

__all__ = ['BACKENDS', 'instruction_set', 'instruction_sets']
