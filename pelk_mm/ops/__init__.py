"""Large-kernel operators: pure functions without parameters."""

from .backends.cpu.library import instruction_set
from .dispatch import depthwise_conv2d, peripheral_conv2d
from .reference import box_sum, expand_kernel

__all__ = [
    'box_sum',
    'depthwise_conv2d',
    'expand_kernel',
    'instruction_set',
    'peripheral_conv2d',
]
