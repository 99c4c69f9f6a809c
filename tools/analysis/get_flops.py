"""Print parameters and multiply-adds of a config's model by component.

Counted as the papers do (dense K x K kernels, times the density) and as our operators
compute; --checkpoint takes the density from the zeros of a file.
"""

import argparse
import sys
from pathlib import Path

from mmengine.config import Config, DictAction

from pelk_mm.analysis.complexity import (
    PAPER_SPARSITY,
    build_on_meta,
    checkpoint_density,
    complexity,
    format_complexity,
    image_shape,
    uniform_density,
)
from pelk_mm.checkpoints.files import read_checkpoint
from pelk_mm.checkpoints.weights import find_weights


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a segmenter or a detector')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="height and width of the image (default: the papers', which is the scale "
        "of a segmenter's test images, or 800 1280 for a detector)",
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
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options)
        model = build_on_meta(cfg)
        shape = tuple(args.shape or image_shape(cfg))
        if min(shape) < 32:
            raise ValueError(f'an image of {shape[0]} x {shape[1]} is too small')
        if args.checkpoint:
            _, weights = find_weights(read_checkpoint(args.checkpoint))
            density = checkpoint_density(weights, model)
            zeros = f'the zeros of {args.checkpoint}'
        else:
            sparsity = args.sparsity
            if sparsity is None:
                sparsity = PAPER_SPARSITY.get(cfg.model.backbone.type, 0.0)
            density = uniform_density(sparsity)
            zeros = f"{sparsity:.0%} zeros in the backbone's weights"
        sizes = complexity(model, shape, density)
    except (FileNotFoundError, ValueError) as error:  # CheckpointError is a ValueError
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')
    print(f'{args.config}, image of {shape[0]} x {shape[1]} (H x W), {zeros}\n')
    print(format_complexity(sizes))


if __name__ == '__main__':
    main()
