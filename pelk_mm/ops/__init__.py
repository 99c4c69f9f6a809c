"""Large-kernel operators: pure functions without parameters."""

from .reference import box_sum, depthwise_conv2d, expand_kernel, peripheral_conv2d

__all__ = ['box_sum', 'depthwise_conv2d', 'expand_kernel', 'peripheral_conv2d']
