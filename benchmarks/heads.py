"""Time the heads of our configs in the forms that prepare_for_inference may give them.

Float32 on the CPU, forms in turns; times of each over the head as it is trained. What
`prepare_for_inference` does is the form that is the fastest of the table.
docs/performance.md quotes it.

    python benchmarks/heads.py
    python benchmarks/heads.py --threads 1 --size 256 --head UPerHead
"""

import copy
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from timing import make_parser, prepare, seconds_of, take_turns, write_json
from torch import Tensor, nn

from pelk_mm.conversion.fold import fold_conv_modules

MODELS_OF_OURS = Path(__file__).resolve().parent.parent / 'configs/_base_/models'
#: Widths of the backbones' stages, and strides of their maps.
CHANNELS, STRIDES = (96, 192, 384, 768), (4, 8, 16, 32)
#: Regions that the second stage of a detector sees.
REGIONS = 50


def maps(size: int) -> list[Tensor]:
    """Feature maps of one image."""
    return [
        torch.randn(1, width, size // stride, size // stride)
        for width, stride in zip(CHANNELS, STRIDES, strict=True)
    ]


def pyramid(size: int) -> list[Tensor]:
    """Maps of a detector's neck."""
    return [torch.randn(1, 256, size // s, size // s) for s in (*STRIDES, 64)]


def regions(size: int, side: int) -> Tensor:
    """Features of a detector's regions."""
    return torch.randn(REGIONS, 256, side, side)


SEGMENTER = Config.fromfile(MODELS_OF_OURS / 'upernet.py').model
DETECTOR = Config.fromfile(MODELS_OF_OURS / 'cascade_mask_rcnn.py').model

#: By name, the framework and config of a head, and what makes its inputs from the
#: images' side.
HEADS: dict[str, tuple[str, dict[str, Any], Callable[[int], Any]]] = {
    'UPerHead': (
        'mmseg',
        dict(SEGMENTER.decode_head, in_channels=list(CHANNELS)),
        maps,
    ),
    'FCNHead': (
        'mmseg',
        dict(SEGMENTER.auxiliary_head, in_channels=CHANNELS[2]),
        maps,
    ),
    'FPN': ('mmdet', dict(DETECTOR.neck, in_channels=list(CHANNELS)), maps),
    'RPNHead': ('mmdet', DETECTOR.rpn_head, pyramid),
    'box head': (
        'mmdet',
        DETECTOR.roi_head.bbox_head[0],
        functools.partial(regions, side=7),
    ),
    'mask head': (
        'mmdet',
        DETECTOR.roi_head.mask_head,
        functools.partial(regions, side=14),
    ),
}


def channels_last(head: nn.Module) -> nn.Module:
    """Lay weights out channels last; convolutions then do so with their outputs."""
    return head.to(memory_format=torch.channels_last)


def folded(head: nn.Module) -> nn.Module:
    """Fold BatchNorms into convolutions."""
    fold_conv_modules(head)
    return head


class PackedConv2d(nn.Module):
    """A convolution by oneDNN with a packed weight, and the ReLU after it."""

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        self.settings = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.bias, self.act = conv.bias, 'relu' if relu else 'none'
        weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
            weight.to_mkldnn(), *self.settings
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        # With maps in another layout it takes several times as long.
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.settings, self.act, [], ''
        )


def packed(head: nn.Module) -> nn.Module:
    """Pack the weights of convolutions, and compute ReLUs with them."""
    for parent in list(head.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ConvModule) and not (
                child.norm and not isinstance(child.norm, nn.Identity)
            ):
                setattr(parent, name, PackedConv2d(child.conv, child.with_activation))
            elif type(child) is nn.Conv2d and not isinstance(parent, ConvModule):
                setattr(parent, name, PackedConv2d(child, False))
    return head


#: Forms by name: what is done to a head, in this order.
FORMS: Mapping[str, tuple[Callable[[nn.Module], nn.Module], ...]] = {
    'as trained': (),
    'channels_last': (channels_last,),
    'folded': (folded,),
    'folded, channels_last': (folded, channels_last),
    'folded, packed': (folded, packed),
}


def build(name: str) -> nn.Module:
    """A head with random weights, frozen, in evaluation mode."""
    framework, config, _ = HEADS[name]
    with DefaultScope.overwrite_default_scope(framework):
        head = revert_sync_batchnorm(MODELS.build(config)).eval()
    return head.requires_grad_(False)


@torch.no_grad()
def compare(name: str, size: int, turns: int) -> dict[str, float]:
    """Print a row of the table: times over those of the head as it is trained.

    Args:
        name: Key of `HEADS`.
        size: Side of the images.
        turns: Timed calls of each form.

    Returns:
        Median seconds of each form.
    """
    head, inputs = build(name), HEADS[name][2](size)
    leaves = torch.utils._pytree.tree_leaves
    expected = leaves(head(inputs))
    works, difference = {}, 0.0
    for form, steps in FORMS.items():
        made = copy.deepcopy(head)
        for step in steps:
            made = step(made)
        for found, right in zip(leaves(made(inputs)), expected, strict=True):
            largest = (found - right).abs().max() / right.abs().max()
            difference = max(difference, largest.item())
        works[form] = functools.partial(seconds_of, made, inputs)
    medians = take_turns(works, turns=turns)
    cells = [f'{medians[form] / medians["as trained"]:.2f}' for form in FORMS]
    print(f'| {name} | {difference:.0e} | {" | ".join(cells)} |', flush=True)
    return medians


def main() -> None:
    """Print the table."""
    parser = make_parser(__doc__)
    parser.add_argument('--head', choices=list(HEADS), action='append')
    parser.add_argument('--size', type=int, default=512, help='side of the images')
    parser.add_argument('--turns', type=int, default=5)
    parser.add_argument('--json', metavar='FILE', help='write all medians to a file')
    args = parser.parse_args()
    machine = prepare(args.threads)
    print(f'| head, {args.size} x {args.size} | difference | {" | ".join(FORMS)} |')
    print('|---' * (len(FORMS) + 2) + '|', flush=True)
    found = {n: compare(n, args.size, args.turns) for n in args.head or HEADS}
    if args.json:
        write_json(args.json, {**machine, 'results': found})


if __name__ == '__main__':
    main()
