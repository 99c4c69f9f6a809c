"""Time partial convolution against splitting, convolving and concatenating channels.

The mixers of PeLK-T's four stages on a 512 x 512 image, channels_last, float32. Both
ways take turns in one run, and their results are compared bit by bit first.
docs/performance.md quotes the table.

    python benchmarks/partial.py                   2 threads
    python benchmarks/partial.py --device cuda     on a GPU
"""

import functools
from collections.abc import Callable

import torch
from timing import add_device, make_parser, prepare, seconds_of, take_turns

from pelk_mm.layers import make_sharing_grid
from pelk_mm.ops import peripheral_conv2d

#: Channels, those of them that are convolved, side of the map and kernel size.
STAGES = ((124, 46, 128, 51), (249, 93, 64, 49), (499, 187, 32, 47), (998, 374, 16, 13))


def work(
    batch: int,
    stage: tuple[int, int, int, int],
    fused: bool,
    backward: bool,
    device: str,
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Prepare one way of mixing."""
    channels, first, side, taps = stage
    grid = make_sharing_grid(taps, 2)
    draw = torch.Generator(device).manual_seed(0)
    make = functools.partial(torch.randn, generator=draw, device=device)
    x, grad = (
        make(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    weight, bias = make(first, len(grid), len(grid)), make(first)
    leaves = [t.requires_grad_(backward) for t in (x, weight, bias)]

    def mix() -> tuple[torch.Tensor, ...]:
        if fused:
            out = peripheral_conv2d(x, weight, grid, bias, partial=True)
        else:
            convolved, rest = x.split((first, channels - first), dim=1)
            convolved = peripheral_conv2d(convolved, weight, grid, bias)
            out = torch.cat((convolved, rest), dim=1)
        return torch.autograd.grad(out, leaves, grad) if backward else (out,)

    return mix


def main() -> None:
    """Print the table."""
    parser = make_parser(__doc__)
    add_device(parser)
    parser.add_argument(
        '--seconds',
        type=float,
        default=2.0,
        help='time to spend per line and pass (default: about %(default)s)',
    )
    args = parser.parse_args()
    prepare(args.threads, args.device)
    print('| mixer | forward | forward + backward |\n|---|---|---|', flush=True)
    for batch in (1, 2):
        for stage in STAGES:
            told = []
            for backward in (False, True):
                ways = {
                    fused: work(batch, stage, fused, backward, args.device)
                    for fused in (False, True)
                }
                if not all(map(torch.equal, ways[False](), ways[True]())):
                    raise SystemExit(f'the results of {stage} differ')
                medians = take_turns(
                    {
                        fused: functools.partial(seconds_of, way, device=args.device)
                        for fused, way in ways.items()
                    },
                    args.seconds,
                )
                told.append(f'{medians[False] / medians[True]:.2f}')
            channels, first, side, taps = stage
            print(
                f'| {batch}x{channels}x{side}x{side}, {first} convolved, K={taps} | '
                f'{" | ".join(told)} |',
                flush=True,
            )


if __name__ == '__main__':
    main()
