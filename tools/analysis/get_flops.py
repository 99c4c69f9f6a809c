"""Print parameters and multiply-adds of a config's model by component.

Counted as the papers do (dense K x K kernels, times the density) and as our operators
compute; --checkpoint takes the density from the zeros of a file. A component that
cannot be counted is named with the reason, and the sum is then a lower bound.
"""

import argparse
import sys
from pathlib import Path

from mmengine.config import DictAction

from pelk_mm.analysis.complexity import (
    checkpoint_density,
    complexity,
    format_complexity,
    paper_sparsity,
    uniform_density,
)
from pelk_mm.analysis.from_config import build_on_meta, image_shape, named_shape
from pelk_mm.checkpoints.files import read_checkpoint
from pelk_mm.checkpoints.weights import find_weights
from pelk_mm.config_types import read_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config of a segmenter, a detector or a classifier'
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='height and width of the image (default: the scale of the test images; '
        'as in the papers where there is none, and for detectors on COCO)',
    )
    density = parser.add_mutually_exclusive_group()
    density.add_argument(
        '--sparsity',
        type=float,
        help="share of zeros among the backbone's 2-D and 4-D weights (default: "
        '0.4 for PeLK and SLaK, 0 for RepLKNet)',
    )
    density.add_argument(
        '--checkpoint', help='file of the model or its backbone whose zeros count'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='key=value ...'
    )
    return parser.parse_args()


def main() -> None:
    """Count and print."""
    args = parse_args()
    try:
        cfg = read_config(args.config, args.cfg_options)
        model = build_on_meta(cfg)
        shape = tuple(args.shape or image_shape(cfg))
        if min(shape) < 32:
            raise ValueError(f'an image of {shape[0]} x {shape[1]} is too small')
        if args.checkpoint:
            _, weights = find_weights(read_checkpoint(args.checkpoint))
            density = checkpoint_density(weights, model)
            zeros = f'the zeros of {args.checkpoint}'
        else:
            sparsity, source = args.sparsity, ''
            if sparsity is None:
                sparsity = paper_sparsity(model)
                source = ' as the papers count it (--sparsity 0 for none)' * (
                    sparsity > 0
                )
            density = uniform_density(sparsity, model)
            zeros = f"{sparsity:.0%} zeros in the backbone's weights{source}"
        sizes = complexity(model, shape, density)
    except ValueError as error:  # ConfigError and CheckpointError are too
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')
    size = f'image of {shape[0]} x {shape[1]} (H x W)'
    if not args.shape and named_shape(cfg) is None:
        size += ' as in the papers, for the config names no size'
    print(f'{args.config}, {size}, {zeros}\n')
    print(format_complexity(sizes))


if __name__ == '__main__':
    main()
