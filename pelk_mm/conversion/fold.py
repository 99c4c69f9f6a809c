"""Fold the BatchNorms of mm's necks and heads into the convolutions before them."""

import copy

import torch
from mmcv.cnn import Conv2d, ConvModule
from torch import nn

from pelk_mm.layers import fold_norm, is_batch_norm

#: Convolutions that use their weight as it is: not, for one, those that standardise it.
ORDINARY = (nn.Conv2d, Conv2d)


@torch.no_grad()
def fold_conv_modules(model: nn.Module) -> int:
    """Fold the BatchNorm of every ``ConvModule`` into its convolution, in place.

    In evaluation mode the model computes the same, up to rounding. Folded are norms
    with running statistics that directly follow an ordinary convolution; what follows
    in the order of definition alone need not follow in that of computing, so modules
    other than mmcv's stay. Heads whose levels share convolutions, but not norms (as
    RTMDet's and RetinaNet's with separate BatchNorms), get one convolution for each.

    Args:
        model: A model, or a part of one.

    Returns:
        How many norms are gone.
    """
    folded = 0
    for module in model.modules():
        if isinstance(module, ConvModule) and _folds(module):
            # Another level may have the same convolution, with a norm of its own.
            conv = copy.copy(module.conv)
            conv._parameters = dict(conv._parameters)
            weight, bias = fold_norm(conv.weight, conv.bias, module.norm)
            trains = conv.weight.requires_grad
            conv.weight = nn.Parameter(weight, requires_grad=trains)
            conv.bias = nn.Parameter(bias, requires_grad=trains)
            module.conv = conv
            module.add_module(module.norm_name, nn.Identity())
            # Where it is on, it would fold the norm at every call.
            module.turn_on_efficient_conv_bn_eval(False)
            folded += 1
    return folded


def _folds(module: ConvModule) -> bool:
    """Whether a module's norm is a constant scale and shift of its convolution."""
    conv, norm = module.conv, module.norm
    return (
        module.order.index('norm') == module.order.index('conv') + 1
        and type(conv) in ORDINARY
        # Spectral norm computes the weight anew at every call.
        and 'weight' in conv._parameters
        and norm is not None
        and not isinstance(norm, nn.Identity)
        and is_batch_norm(norm)
        and norm.running_mean is not None
        and not norm.training
    )
