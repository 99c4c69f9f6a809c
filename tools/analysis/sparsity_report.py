"""Print the density of every layer of a checkpoint and draw it as histograms."""

import argparse
import sys
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', type=Path, help='.pth or .safetensors file')
    parser.add_argument(
        '--out',
        type=Path,
        help='the picture (default: sparsity.png next to the checkpoint)',
    )
    return parser.parse_args()


def main() -> None:
    """Write the report."""
    args = parse_args()
    # After the arguments: a wrong one should not wait for torch to load.
    from pelk_mm.analysis.sparsity_report import (
        draw_histograms,
        format_table,
        read_layers,
    )
    from pelk_mm.checkpoints.files import read_checkpoint, write_output

    out = args.out or args.checkpoint.with_name('sparsity.png')
    try:
        layers = read_layers(read_checkpoint(args.checkpoint))
        print(format_table(layers))
        with write_output(out) as path:
            draw_histograms(layers, path, args.checkpoint.name)
    except ValueError as error:  # CheckpointError is one
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')
    print(f'Histograms: {out}')


if __name__ == '__main__':
    main()
