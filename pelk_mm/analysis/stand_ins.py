"""What stands in for parts of mmdet and mmcv where tensors have no values.

That is what reads values on its own: compiled operators, and what depends on what a
detector finds. None of it multiplies by weights, apart from convolutions, which the
stand-ins keep.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

#: Regions that each head of a detector's second stage sees, by mm's convention.
BOX_REGIONS = 1000
MASK_REGIONS = 100
#: The methods of mmdet's second stages that give each head its regions.
REGIONS = {'_bbox_forward': BOX_REGIONS, '_mask_forward': MASK_REGIONS}


def _region_features(module: Any, features: Tensor, rois: Tensor, *_: Any) -> Tensor:
    """What RoIAlign and RoIPool return."""
    return features.new_empty(len(rois), features.shape[1], *module.output_size)


def _extract(
    module: Any, features: Sequence[Tensor], rois: Tensor, *_: Any, **__: Any
) -> Tensor:
    """What mmdet's extractor returns, whichever levels the regions are on."""
    return module.roi_layers[0](features[0], rois)


def _sampled_convolution(module: Any, x: Tensor, *_: Any) -> Tensor:
    """A deformable convolution: as many multiply-adds as the convolution it deforms."""
    if hasattr(module, 'conv_offset'):  # it computes the offsets itself
        module.conv_offset(x)
    return F.conv2d(
        x,
        module.weight,
        getattr(module, 'bias', None),
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
    )


def _convolve_everywhere(module: Any, x: Tensor, *_: Any) -> Tensor:
    """A convolution that a mask restricts, at its most."""
    return nn.Conv2d.forward(module, x)


def _psa_mask(module: Any, x: Tensor) -> Tensor:
    """What PSANet's selection of attention returns."""
    height, width = x.shape[-2:]
    return x.new_empty(len(x), height * width, height, width)


#: By class name, what stands in for the forward pass of modules of mmcv and mmdet whose
#: compiled operators read values.
STAND_INS: dict[str, Callable[..., Tensor]] = {
    'RoIAlign': _region_features,
    'RoIPool': _region_features,
    'SingleRoIExtractor': _extract,
    'DeformConv2d': _sampled_convolution,
    'ModulatedDeformConv2d': _sampled_convolution,
    'MaskedConv2d': _convolve_everywhere,
    'PSAMask': _psa_mask,
}


def forward_of(module: Any) -> Callable[..., Any]:
    """A module's forward pass, or what stands in for it."""
    for base in type(module).__mro__:
        if base.__name__ in STAND_INS:
            return functools.partial(STAND_INS[base.__name__], module)
    return module.forward


def instances(number: int) -> InstanceData:
    """Instances that cover the upper left 64 x 64 pixels of an image."""
    return InstanceData(
        bboxes=torch.tensor([[0.0, 0.0, 64.0, 64.0]]).repeat(number, 1),
        labels=torch.zeros(number, dtype=torch.long),
        scores=torch.ones(number),
    )


def on_regions(forward: Callable[..., Any], most: int) -> Callable[..., Any]:
    """Have a method of a second stage see real regions, and no more than ``most``.

    Regions that an earlier head has refined have no values, and mm sorts them by image.
    """
    signature = inspect.signature(forward)

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        number = len(bound.arguments['rois'])
        boxes = instances(min(number, most)).bboxes
        bound.arguments['rois'] = F.pad(boxes, (1, 0))  # of image 0
        results = forward(*bound.args, **bound.kwargs)
        if number <= most:
            return results
        # The caller splits them by image again.
        return tree_map_only(
            Tensor, lambda x: x[:1].expand(number, *x.shape[1:]), results
        )

    return run


def arguments_of(module: nn.Module, method: str) -> Collection[str]:
    """Names of the arguments of a module's method; none without the method."""
    function = getattr(module, method, None)
    return inspect.signature(function).parameters if callable(function) else ()
