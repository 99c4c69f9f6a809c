"""The backbones, registered in mmengine's root registry."""

from .base import LargeKernelBackbone
from .pelk import PeLK
from .replknet import RepLKNet
from .slak import SLaK

__all__ = ['LargeKernelBackbone', 'PeLK', 'RepLKNet', 'SLaK']
