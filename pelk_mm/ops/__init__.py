"""Large-kernel operators: pure functions without parameters, on torch alone."""

from . import jit_counters
from .backends.cpu import instruction_set
from .functional import (
    available_backends,
    depthwise_conv2d,
    explain,
    peripheral_conv2d,
)
from .reference import box_sum, expand_kernel
from .switch import is_plain, plain

__all__ = [
    'available_backends',
    'box_sum',
    'depthwise_conv2d',
    'expand_kernel',
    'explain',
    'instruction_set',
    'is_plain',
    'peripheral_conv2d',
    'plain',
]

jit_counters.install()
