"""Modules with parameters that the backbones are built of."""

from .convnext_block import ConvNeXtBlock
from .depthwise import ConvNorm, DepthwiseConv2d, add_centred, fold_norm
from .norm import LayerNorm2d
from .peripheral import PartialPeripheralConv2d, PeripheralConv2d
from .sharing_grid import check_kernel_size, check_sharing_grid, make_sharing_grid

__all__ = [
    'ConvNeXtBlock',
    'ConvNorm',
    'DepthwiseConv2d',
    'LayerNorm2d',
    'PartialPeripheralConv2d',
    'PeripheralConv2d',
    'add_centred',
    'check_kernel_size',
    'check_sharing_grid',
    'fold_norm',
    'make_sharing_grid',
]
