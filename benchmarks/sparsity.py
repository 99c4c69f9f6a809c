"""What masking costs a training iteration, as a ratio, measured in pairs.

Every iteration is timed twice, up to the masks and with them, and the ratio is taken
within it, so that whatever else the machine does affects both alike. docs/sparsity.md
quotes the ratios.

    python benchmarks/sparsity.py               PeLK-T on 2 images of 128 x 128
    python benchmarks/sparsity.py --crop 512
"""

import argparse
from statistics import median

import torch
from timing import clock, make_parser, prepare
from torch import Tensor, nn

from pelk_mm.backbones import PeLK
from pelk_mm.sparsity import (
    SparsityMasks,
    allocate,
    draw_masks,
    erk,
    prune_and_grow,
    select_parameters,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        '--arch', default='tiny', help='arch of PeLK (default: %(default)s)'
    )
    parser.add_argument(
        '--crop',
        type=int,
        default=128,
        help='side of the images (default: %(default)s)',
    )
    parser.add_argument(
        '--batch', type=int, default=2, help='number of images (default: %(default)s)'
    )
    parser.add_argument(
        '--iterations',
        type=int,
        default=8,
        help='timed iterations (default: %(default)s)',
    )
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='where to train (default here: %(default)s)',
    )
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse_args()
    prepare(args.threads)
    model = PeLK(args.arch, layer_scale_init_value=1.0).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    params = select_parameters(model, patterns=['.'])
    generator = torch.Generator().manual_seed(0)
    counts = allocate(params, 0.6, erk)
    masks = SparsityMasks(params, draw_masks(params, counts, generator))
    images = torch.rand(args.batch, 3, args.crop, args.crop, device=args.device)

    def iteration() -> tuple[float, float]:
        """Seconds without and with the masks."""
        start = clock(args.device)
        sum(out.square().mean() for out in model(images)).backward()
        optimizer.step()
        plain = clock(args.device) - start
        masks.apply(optimizer)
        masked = clock(args.device) - start
        optimizer.zero_grad()
        return plain, masked

    def update() -> float:
        start = clock(args.device)
        masks.replace(new_masks(masks, params, generator), optimizer)
        return clock(args.device) - start

    iteration()
    pairs = [iteration() for _ in range(args.iterations)]
    ratio = median(masked / plain for plain, masked in pairs)
    plain = median(plain for plain, _ in pairs)
    updates = median(update() for _ in range(3))
    print(
        f'PeLK {args.arch}, {args.batch} x {args.crop} x {args.crop}, {args.device}: '
        f'{plain * 1e3:.0f} ms per iteration, '
        f'with masks x {ratio:.3f}; an update of the masks costs '
        f'{updates / plain:.2f} iterations'
    )


def new_masks(
    masks: SparsityMasks, params: dict[str, nn.Parameter], generator: torch.Generator
) -> dict[str, Tensor]:
    """One random prune-and-grow at rate 0.5."""
    return {
        name: prune_and_grow(params[name], mask, 0.5, generator)
        for name, mask in masks.masks.items()
    }


if __name__ == '__main__':
    main()
