"""Estimate the GPU-hours of trainings from their configs, under a stated assumption.

It is arithmetic: six floating-point operations per multiply-add of a forward pass and
image, over those that a GPU is assumed to do. Nothing is measured.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pelk_mm.analysis.training_cost import training_cost
from pelk_mm.config_types import read_config
from pelk_mm_cli import config_argument

#: The assumption of docs/scaling.md: an A100's dense bfloat16 peak, in 10^12 operations
#: per second, and a quarter of it.
PEAK, UTILISATION = 312.0, 0.25


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', type=config_argument)
    parser.add_argument(
        '--peak',
        type=float,
        default=PEAK,
        help="the GPU's peak in 10^12 operations per second (%(default)s: A100, bf16)",
    )
    parser.add_argument(
        '--utilisation',
        type=float,
        default=UTILISATION,
        help='share of the peak that the training is assumed to reach (%(default)s)',
    )
    args = parser.parse_args()
    if args.peak <= 0 or not 0 < args.utilisation <= 1:
        parser.error('--peak must be positive, --utilisation in (0, 1]')
    return args


def format_table(
    configs: Sequence[str | Path], peak: float, utilisation: float
) -> Iterator[str]:
    """Lines of a Markdown table.

    Raises:
        ValueError: If a config is not that of a training whose images are known.
    """
    yield '| config | images | H x W | multiply-adds an image | exaFLOPs | GPU-hours |'
    yield '|---|--:|---|--:|--:|--:|'
    for path in configs:
        cost = training_cost(read_config(path))
        height, width = cost.shape
        hours = cost.gpu_hours(peak * 1e12, utilisation)
        yield (
            f'| {Path(path).stem} | {cost.images / 1e6:.1f} M | {height} x {width} '
            f'| {cost.multiply_adds / 1e9:.1f} G | {cost.flops / 1e18:.0f} '
            f'| {hours:.0f} |'
        )


def main() -> None:
    """Print the table."""
    args = parse_args()
    try:
        for line in format_table(args.configs, args.peak, args.utilisation):
            print(line)
    except ValueError as error:  # ConfigError is one
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')


if __name__ == '__main__':
    main()
