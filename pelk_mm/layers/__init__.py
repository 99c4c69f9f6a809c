"""Modules with parameters that the backbones are built of."""

from .conv_norm import ConvNorm, fold_norm
from .convnext_block import ConvNeXtBlock
from .depthwise import DepthwiseConv2d, add_centred
from .norm import LayerNorm2d, batch_norms, is_batch_norm
from .peripheral import PartialPeripheralConv2d, PeripheralConv2d
from .pointwise import PointwiseConv2d, PointwiseLinear, lay_out, pack_pointwise, relu
from .pooled_norm import PooledLayerNorm
from .reparam import ReparamDepthwise, large_and_small, stripes_and_small
from .replknet_block import ConvFFN, RepLKBlock
from .sharing_grid import check_kernel_size, check_sharing_grid, make_sharing_grid

__all__ = [
    'ConvFFN',
    'ConvNeXtBlock',
    'ConvNorm',
    'DepthwiseConv2d',
    'LayerNorm2d',
    'PartialPeripheralConv2d',
    'PeripheralConv2d',
    'PointwiseConv2d',
    'PointwiseLinear',
    'PooledLayerNorm',
    'RepLKBlock',
    'ReparamDepthwise',
    'add_centred',
    'batch_norms',
    'check_kernel_size',
    'check_sharing_grid',
    'fold_norm',
    'is_batch_norm',
    'large_and_small',
    'make_sharing_grid',
    'lay_out',
    'pack_pointwise',
    'relu',
    'stripes_and_small',
]
