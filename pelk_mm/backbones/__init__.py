"""The backbones, registered in mmengine's root registry."""

from .base import LargeKernelBackbone
from .pelk import PeLK

__all__ = ['LargeKernelBackbone', 'PeLK']
