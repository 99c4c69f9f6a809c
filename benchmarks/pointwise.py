"""Time pointwise layers by MKL and by oneDNN, and what whole backbones gain.

Ways to compute a float32 `nn.Linear` of the models take turns in one run, after their
results have been compared. docs/performance.md quotes the tables.

    python benchmarks/pointwise.py              layers of PeLK and SLaK, and of RepLKNet
    python benchmarks/pointwise.py --branches   norm, linear, GELU, linear and residual
    python benchmarks/pointwise.py --models     deployed backbones, before and after
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from timing import make_parser, prepare, seconds_of, take_turns
from torch import Tensor, nn

import pelk_mm  # noqa: F401  registers the backbones
from pelk_mm.backbones import base
from pelk_mm.layers import (
    ConvNeXtBlock,
    convnext_block,
    pack_pointwise,
    pointwise,
    replknet_block,
)
from pelk_mm.ops.linear import ENVIRONMENT_VARIABLE, linear, pack

#: Stride and width of each stage.
WIDTHS = {
    'PeLK-T, SLaK-T': ((4, 124), (8, 249), (16, 499), (32, 998)),
    'RepLKNet-31B': ((4, 128), (8, 256), (16, 512), (32, 1024)),
}
BACKBONES = {
    'PeLK-T': {'type': 'PeLK', 'arch': 'tiny'},
    'SLaK-T': {'type': 'SLaK', 'arch': 'tiny'},
    'RepLKNet-31B': {'type': 'RepLKNet', 'arch': '31B'},
}
#: Largest error that counts as rounding, over the largest value.
TOLERANCE = 1e-4


def library(name: str) -> contextlib.AbstractContextManager:
    """Force the library of float32 products."""
    return mock.patch.dict(os.environ, {ENVIRONMENT_VARIABLE: name})


@contextlib.contextmanager
def before() -> Iterator[None]:
    """Compute the blocks as before: F.linear, nothing in place, in the given layout."""

    def never(*args: object) -> None:
        return None

    with (
        library('torch'),
        mock.patch.object(convnext_block, 'add_in_chunks', never),
        mock.patch.object(replknet_block, 'add_in_chunks', never),
        mock.patch.object(pointwise, '_is_owned', never),
        mock.patch.object(base, 'lay_out', lambda images: images),
    ):
        yield


def require_close(name: str, found: Tensor, expected: Tensor) -> None:
    """End the script if a way computes something else."""
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    if not error <= TOLERANCE:
        raise SystemExit(f'{name} differs by {error:.1e} of the largest value')


def draw(*shape: int) -> Tensor:
    """Draw a tensor whose values do not depend on what was drawn before."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def layer_ways(rows: int, shape: tuple[int, int]) -> dict[str, Callable[[], Tensor]]:
    """Ways to compute a layer's output, MKL's first."""
    width, out = shape
    x, weight, bias = draw(rows, width), draw(out, width), draw(out)
    with library('onednn'):
        packed = pack(weight, bias)
    side = int(rows**0.5)
    maps = x[: side * side].view(1, side, side, width).permute(0, 3, 1, 2)
    kernels = weight[:, :, None, None]

    def by_onednn(packed: object) -> Tensor:
        with library('onednn'):
            return linear(x, weight, bias, packed)

    return {
        'F.linear': lambda: F.linear(x, weight, bias),
        '1 x 1 convolution': lambda: (
            F.conv2d(maps, kernels, bias).permute(0, 2, 3, 1).reshape(-1, out)
        ),
        'oneDNN': functools.partial(by_onednn, None),
        'oneDNN, packed': functools.partial(by_onednn, packed),
    }


def gradient_ways(rows: int, shape: tuple[int, int]) -> dict[str, Callable]:
    """Ways to compute a layer's output and all gradients."""
    width, out = shape
    leaves = [t.requires_grad_() for t in (draw(rows, width), draw(out, width))]
    grad = draw(rows, out)

    def step(name: str) -> Tensor:
        with library(name), torch.enable_grad():
            return torch.autograd.grad(linear(*leaves), leaves, grad)[0]

    return {name: functools.partial(step, name) for name in ('torch', 'onednn')}


def timed(ways: dict[str, Callable[[], Tensor]], seconds: float) -> dict[str, float]:
    """Compare ways, then time them in turns."""
    first, *others = ways
    expected = ways[first]()
    for name in others:
        require_close(name, ways[name](), expected)
    works = {name: functools.partial(seconds_of, way) for name, way in ways.items()}
    return take_turns(works, seconds)


def row(title: str, medians: dict[str, float], *more: str) -> None:
    """Print a line: the first way's time over each other's."""
    base_time, *others = medians.values()
    cells = [f'{base_time / other:.2f}' for other in others]
    print(f'| {title} | {1e3 * base_time:.1f} | {" | ".join([*cells, *more])} |')


def time_layers(side: tuple[int, int], seconds: float) -> None:
    """Print how much faster than F.linear the other ways are."""
    print(
        '| rows x C_in x C_out | F.linear, ms | 1 x 1 convolution | oneDNN '
        '| oneDNN, packed | oneDNN, with gradients |\n|---|--:|--:|--:|--:|--:|'
    )
    for stages in WIDTHS.values():
        for stride, width in stages:
            rows = (side[0] // stride) * (side[1] // stride)
            for shape in ((width, 4 * width), (4 * width, width)):
                medians = timed(layer_ways(rows, shape), seconds)
                both = timed(gradient_ways(rows, shape), seconds)
                gain = both['torch'] / both['onednn']
                row(f'{rows} x {shape[0]} x {shape[1]}', medians, f'{gain:.2f}')


def time_branches(side: tuple[int, int], seconds: float) -> None:
    """Print what computing a block's branch in chunks and in place gains."""
    print(
        '| pixels x C | as a whole, F.linear, ms | as a whole, oneDNN | in chunks '
        '| in chunks, packed |\n|---|--:|--:|--:|--:|'
    )
    for stride, width in WIDTHS['PeLK-T, SLaK-T']:
        block = ConvNeXtBlock(width, nn.Identity(), layer_scale_init_value=0).eval()
        x = draw(1, width, side[0] // stride, side[1] // stride)
        x = x.contiguous(memory_format=torch.channels_last)

        def run(how: str, block: nn.Module = block, x: Tensor = x) -> Tensor:
            whole = mock.patch.object(
                convnext_block, 'add_in_chunks', return_value=None
            )
            with contextlib.ExitStack() as stack:
                stack.enter_context(library('torch' if how == 'torch' else 'onednn'))
                if how != 'chunks':
                    stack.enter_context(whole)
                return block(x)

        ways = {how: functools.partial(run, how) for how in ('torch', 'onednn')}
        ways['chunks'] = functools.partial(run, 'chunks')
        medians = timed(ways, seconds)
        with library('onednn'):
            pack_pointwise(block)
        again = timed({k: ways[k] for k in ('torch', 'chunks')}, seconds)
        # A packed weight is used whatever the rule says.
        gain = medians['chunks'] / again['chunks']
        row(
            f'{x[0, 0].numel()} x {width}',
            medians,
            f'{medians["torch"] / medians["chunks"] * gain:.2f}',
        )


def random_backbone(config: dict[str, str]) -> nn.Module:
    """Build a deployed backbone whose branches all count."""
    model = MODELS.build(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif name.endswith('gamma'):
            nn.init.ones_(parameter)
    model.switch_to_deploy()
    return model


def time_models(side: tuple[int, int], seconds: float, names: list[str]) -> None:
    """Print what deployed backbones gain, and what packing adds."""
    print(
        '| backbone | before, ms | after | after, packed | difference '
        '| packed weights, MiB |\n|---|--:|--:|--:|--:|--:|'
    )
    images = draw(1, 3, *side)
    for name in names:
        torch.manual_seed(0)
        model = random_backbone(BACKBONES[name])
        torch.manual_seed(0)
        packed = random_backbone(BACKBONES[name])
        size = pack_pointwise(packed)

        def plain(model: nn.Module = model) -> tuple[Tensor, ...]:
            with before():
                return model(images)

        expected = plain()
        error = 0.0
        for other in (model, packed):
            for found, right in zip(other(images), expected, strict=True):
                require_close(name, found, right)
                error = max(
                    error, ((found - right).abs().max() / right.abs().max()).item()
                )
        ways = {
            'before': plain,
            'after': functools.partial(model, images),
            'packed': functools.partial(packed, images),
        }
        works = {key: functools.partial(seconds_of, way) for key, way in ways.items()}
        medians = take_turns(works, seconds)
        row(name, medians, f'{error:.1e}', f'{size / 2**20:.0f}')


@torch.no_grad()
def main() -> None:
    """Print the table that is asked for."""
    parser = make_parser(__doc__)
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        default=(512, 512),
        metavar=('H', 'W'),
        help='size of the image (default: 512 512)',
    )
    parser.add_argument(
        '--seconds',
        type=float,
        default=2.0,
        help='time to spend per line (default: about %(default)s)',
    )
    parser.add_argument('--branches', action='store_true', help='time branches')
    parser.add_argument(
        '--models',
        nargs='*',
        choices=BACKBONES,
        metavar='NAME',
        help=f'time backbones, of {", ".join(BACKBONES)}; all if none is named',
    )
    args = parser.parse_args()
    prepare(args.threads)
    if args.models is not None:
        time_models(args.shape, args.seconds, args.models or list(BACKBONES))
    elif args.branches:
        time_branches(args.shape, args.seconds)
    else:
        time_layers(args.shape, args.seconds)


if __name__ == '__main__':
    main()
