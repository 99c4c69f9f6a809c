"""Time whole models with the fast operators against plain nn.Conv2d.

Both versions are the same model with the same weights: the plain one calls torch's
convolution on the expanded kernels instead of pelk_mm.ops. They take turns in one run.
docs/performance.md quotes the table.

    python benchmarks/backbones.py              training steps of backbones and UperNets
    python benchmarks/backbones.py --forward    inference
    python benchmarks/backbones.py --device cuda    both on a GPU, and images a second
    python benchmarks/backbones.py --throughput     the latter alone
    python benchmarks/backbones.py --dtype bfloat16     training steps under autocast

Inference against other engines, the same weights, forms in turns in one run:

    python benchmarks/backbones.py --against --batch 1 --turns 5
    python benchmarks/backbones.py --against onnxruntime openvino --size 800 1280
    python benchmarks/backbones.py --against --dtype bfloat16 --whole
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS as BACKBONES
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from rivals import RIVALS, compare_engines
from timing import (
    add_device,
    make_parser,
    median_seconds,
    prepare,
    seconds_of,
    take_turns,
    write_json,
)

import pelk_mm  # noqa: F401  registers the backbones
from pelk_mm import ops
from pelk_mm.analysis.engines import OURS, Setting
from pelk_mm.layers import depthwise, peripheral
from pelk_mm.ops.problem import dtype_name

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
MODEL_CONFIGS = (
    'upernet_pelk_t_ade20k.py',
    'upernet_slak_t_ade20k.py',
    'upernet_replknet_31b_ade20k.py',
)
#: Backbones of PeLK's table of throughput (section 6.3), and images a second there:
#: A100, float32, 224 x 224, the batch not told.
THROUGHPUT = {
    'SLaK-T': ({'type': 'SLaK', 'arch': 'tiny'}, 754),
    'PeLK-T': ({'type': 'PeLK', 'arch': 'tiny'}, 1138),
    'PeLK-101-T': ({'type': 'PeLK', 'arch': 'tiny-101'}, 1077),
}


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
        ops.plain(),  # for products, too
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
        size = (1, *image.shape[1:])
        labels = torch.randint(0, model.num_classes, size, device=image.device)
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


def plain_seconds(
    step: Callable[..., None], *arguments: object, device: str = 'cpu'
) -> float:
    """Time a step on torch's convolution, in seconds."""
    with plain():
        return seconds_of(step, *arguments, device=device)


def operator_time(
    step: Callable[..., None], *arguments: object, device: str = 'cpu'
) -> float:
    """Time that a step spends in our operators.

    Returns:
        Seconds.
    """
    with torch.profiler.profile() as profile:
        step(*arguments)
    return 1e-6 * sum(
        event.cpu_time_total if device == 'cpu' else event.device_time_total
        for event in profile.key_averages()
        if event.key.startswith('pelk_mm::')
    )


def in_dtype(
    step: Callable[..., None], dtype: torch.dtype, device: str
) -> Callable[..., None]:
    """A step under autocast to a data type, or as it is in float32."""

    def run(*arguments: object) -> None:
        with torch.autocast(device, dtype, enabled=dtype is not torch.float32):
            step(*arguments)

    return run


def compare(
    configs: Iterable[str],
    batch: int,
    size: int | tuple[int, int],
    turns: int,
    train: bool,
    device: str = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> dict[str, dict[str, float]]:
    """Print the table of segmentors and their backbones.

    Args:
        configs: File names in `configs/`.
        batch: Number of images.
        size: Side of the images, or height and width.
        turns: Timed steps of each version.
        train: Training steps, or inference.
        device: Type of the device.
        dtype: What ours compute in, by autocast; the plain ones stay in float32.

    Returns:
        Of every line the median seconds. One that does not fit into memory says so in
        the table, and is missing.
    """
    work = 'training step' if train else 'inference'
    work += '' if dtype is torch.float32 else f', {dtype_name(dtype)} over float32'
    height, width = (size, size) if isinstance(size, int) else size
    print(
        f'| {work}, {batch} x {height} x {width} | x faster than plain '
        '| if the operators took no time |'
    )
    print('|---|---|---|', flush=True)
    results = {}
    for config in configs:
        for part, step in (('backbone', backbone_step), ('segmentor', segmentor_step)):
            try:
                model = build(config).to(device).train(train)
                images = torch.randn(batch, 3, height, width, device=device)
                arguments = (model, images, train)
                on_device = {'device': device}
                ours = (in_dtype(step, dtype, device), *arguments)
                works = {
                    'ours': functools.partial(seconds_of, *ours, **on_device),
                    'plain': functools.partial(
                        plain_seconds, step, *arguments, **on_device
                    ),
                }
                medians = take_turns(works, turns=turns)
                medians['operators'] = operator_time(*ours, **on_device)
            except torch.OutOfMemoryError:
                print(f'| {config}, {part} | out of memory | |', flush=True)
                continue
            bound = medians['plain'] / (medians['ours'] - medians['operators'])
            ratio = medians['plain'] / medians['ours']
            print(f'| {config}, {part} | {ratio:.1f} | {bound:.1f} |', flush=True)
            results[f'{config} {part}'] = medians
    return results


def throughput(
    batch: int,
    size: int = 224,
    device: str = 'cpu',
    models: Mapping[str, tuple[dict, int]] = THROUGHPUT,
) -> dict[str, float | str]:
    """Print images a second of backbones in inference, in float32.

    Without a classifier, of which these backbones have none, and in their deployment
    form.

    Args:
        batch: Number of images at a time.
        size: Side of the images.
        device: Type of the device.
        models: Configs of the backbones and images a second in the paper, by name.

    Returns:
        Images a second by name, or that the memory does not suffice.
    """
    print(
        f'\n| inference, {batch} x {size} x {size}, float32, images a second | here '
        '| in the paper, on an A100 at 224 x 224 |'
    )
    print('|---|---|---|', flush=True)
    found: dict[str, float | str] = {}
    for name, (config, paper) in models.items():
        try:
            model = BACKBONES.build({**config, 'deploy': True}).to(device).eval()
            images = torch.randn(batch, 3, size, size, device=device)
            with torch.no_grad():
                seconds = median_seconds(functools.partial(model, images), device)
            found[name] = batch / seconds
        except torch.OutOfMemoryError:
            found[name] = 'out of memory'
        told = found[name]
        told = told if isinstance(told, str) else f'{told:.4g}'
        print(f'| {name} | {told} | {paper} |', flush=True)
    return found


def main() -> None:
    """Run the models and print their tables."""
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
        nargs='+',
        default=[512],
        help='side of the images, or height and width (default: 512)',
    )
    parser.add_argument(
        '--against',
        nargs='*',
        choices=list(RIVALS),
        help='inference in our forms against these, and torch.compile on nn.Conv2d '
        f'(default: {" ".join(RIVALS)})',
    )
    parser.add_argument(
        '--forms',
        nargs='+',
        choices=OURS,
        default=OURS,
        help='with --against: our forms to measure beside eager (default: all)',
    )
    parser.add_argument(
        '--whole', action='store_true', help='with --against: UperNets, not backbones'
    )
    parser.add_argument(
        '--dtype',
        choices=('float32', 'bfloat16'),
        default='float32',
        help='what inference and our training steps compute in (default: %(default)s)',
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
    parser.add_argument(
        '--throughput',
        action='store_true',
        help="images a second at 224 x 224 beside the paper's, alone",
    )
    parser.add_argument(
        '--throughput-batch',
        type=int,
        default=64,
        help='number of images for it (default: %(default)s)',
    )
    parser.add_argument('--json', metavar='FILE', help='write all medians to a file')
    add_device(parser)
    args = parser.parse_args()
    if len(args.size) > 2:
        parser.error('--size takes one or two numbers')
    shape = (args.size[0], args.size[-1])
    register_all_modules(init_default_scope=True)
    machine = prepare(args.threads, args.device)
    results: dict[str, Any] = {}
    if args.against is not None:
        amp = args.dtype != 'float32'
        setting = Setting(shape, args.batch, args.device, amp, threads=args.threads)
        results = compare_engines(
            [CONFIGS / name for name in args.config or MODEL_CONFIGS],
            args.against or RIVALS,
            setting,
            args.whole,
            args.turns,
            args.forms,
        )
    elif not args.throughput:
        results = compare(
            args.config or MODEL_CONFIGS,
            args.batch,
            shape,
            args.turns,
            not args.forward,
            args.device,
            getattr(torch, args.dtype),
        )
    if args.throughput or (args.device != 'cpu' and args.against is None):
        rates = throughput(args.throughput_batch, device=args.device)
        results['images a second'] = rates
    if args.json:
        write_json(args.json, {**machine, 'results': results})


if __name__ == '__main__':
    main()
