"""Time whole models with the fast operators against plain nn.Conv2d.

Both versions are the same model with the same weights: the plain one calls torch's
convolution on the expanded kernels instead of pelk_mm.ops. They take turns in one run.
docs/performance.md quotes the table.

    python benchmarks/backbones.py              training steps of backbones and UperNets
    python benchmarks/backbones.py --forward    inference
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from timing import make_parser, prepare, seconds_of, take_turns

import pelk_mm  # noqa: F401  registers the backbones
from pelk_mm import ops
from pelk_mm.layers import depthwise, peripheral

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
MODEL_CONFIGS = (
    'upernet_pelk_t_ade20k.py',
    'upernet_slak_t_ade20k.py',
    'upernet_replknet_31b_ade20k.py',
)


def _plain_depthwise(x, weight, bias=None):
    kh, kw = weight.shape[1:]
    return F.conv2d(
        x,
        weight.unsqueeze(1),
        bias,
        padding=(kh // 2, kw // 2),
        groups=x.shape[1],
    )


def _plain_peripheral(x, weight, sharing_grid, bias=None, *, partial=False):
    first, rest = x.tensor_split((len(weight),), dim=1)
    out = _plain_depthwise(first, ops.expand_kernel(weight, sharing_grid), bias)
    return torch.cat((out, rest), dim=1) if partial else out


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Make the layers call torch's convolution in the layout they are given."""
    with (
        mock.patch.object(depthwise, 'depthwise_conv2d', _plain_depthwise),
        mock.patch.object(peripheral, 'peripheral_conv2d', _plain_peripheral),
    ):
        yield


def build(config: str) -> torch.nn.Module:
    """Build a segmentor from one of our configs, without pretrained weights.

    Args:
        config: File name in `configs/`.

    Returns:
        The model, in training mode.
    """
    model = Config.fromfile(CONFIGS / config).model
    model.backbone.init_cfg = None
    # Synchronised norms need a process group.
    for part in (model.backbone, model.decode_head, model.auxiliary_head):
        if 'SyncBN' in str(part.get('norm_cfg')):
            part.norm_cfg = {'type': 'BN', 'requires_grad': True}
    return MODELS.build(model).train()


def segmentor_step(model: torch.nn.Module, images: torch.Tensor, train: bool) -> None:
    """Compute losses and gradients, or in inference the logits.

    Args:
        model: Segmentor out of `build`.
        images: Batch of shape (N, 3, H, W).
        train: Whether to compute losses and gradients.
    """
    samples = []
    for image in images:
        labels = torch.randint(0, model.num_classes, (1, *image.shape[1:]))
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=labels)))
    if train:
        losses = model(images, samples, mode='loss')
        sum(v.sum() for k, v in losses.items() if 'loss' in k).backward()
        model.zero_grad()
    else:
        with torch.no_grad():
            model(images, mode='tensor')


def backbone_step(model: torch.nn.Module, images: torch.Tensor, train: bool) -> None:
    """Compute feature maps and, in training, gradients of the sum of their squares.

    Args:
        model: Segmentor out of `build`.
        images: Batch of shape (N, 3, H, W).
        train: Whether to compute gradients.
    """
    with torch.set_grad_enabled(train):
        maps = model.backbone(images)
    if train:
        sum(m.square().mean() for m in maps).backward()
        model.zero_grad()


def plain_seconds(step: Callable[..., None], *arguments: object) -> float:
    """Time a step on torch's convolution, in seconds."""
    with plain():
        return seconds_of(step, *arguments)


def operator_time(step: Callable[..., None], *arguments: object) -> float:
    """Time that a step spends in our operators.

    Returns:
        Seconds.
    """
    with torch.profiler.profile() as profile:
        step(*arguments)
    return 1e-6 * sum(
        event.cpu_time_total
        for event in profile.key_averages()
        if event.key.startswith('pelk_mm::')
    )


def main() -> None:
    """Run the models and print their table."""
    parser = make_parser(__doc__)
    parser.add_argument(
        '--config',
        action='append',
        metavar='FILE',
        help='file name in configs/, more than once for several (default: UperNets '
        'on PeLK-T, SLaK-T and RepLKNet-31B)',
    )
    parser.add_argument(
        '--batch', type=int, default=2, help='number of images (default: %(default)s)'
    )
    parser.add_argument(
        '--size',
        type=int,
        default=512,
        help='side of the images (default: %(default)s)',
    )
    parser.add_argument(
        '--turns',
        type=int,
        default=3,
        help='timed steps of each version (default: %(default)s)',
    )
    parser.add_argument(
        '--forward', action='store_true', help='inference instead of training steps'
    )
    parser.add_argument('--json', metavar='FILE', help='write all medians to a file')
    args = parser.parse_args()
    register_all_modules(init_default_scope=True)
    prepare(args.threads)
    work = 'inference' if args.forward else 'training step'
    print(
        f'| {work}, {args.batch} x {args.size} x {args.size} | x faster than plain '
        '| if the operators took no time |'
    )
    print('|---|---|---|', flush=True)
    results = {}
    for config in args.config or MODEL_CONFIGS:
        model = build(config)
        model.train(not args.forward)
        images = torch.randn(args.batch, 3, args.size, args.size)
        for part, step in (('backbone', backbone_step), ('segmentor', segmentor_step)):
            arguments = (step, model, images, not args.forward)
            works = {
                'ours': functools.partial(seconds_of, *arguments),
                'plain': functools.partial(plain_seconds, *arguments),
            }
            medians = take_turns(works, turns=args.turns)
            medians['operators'] = operator_time(*arguments)
            bound = medians['plain'] / (medians['ours'] - medians['operators'])
            ratio = medians['plain'] / medians['ours']
            print(f'| {config}, {part} | {ratio:.1f} | {bound:.1f} |', flush=True)
            results[f'{config} {part}'] = medians
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))


if __name__ == '__main__':
    main()
