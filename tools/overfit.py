"""Let a narrow PeLK Cascade Mask R-CNN learn a few images of COCO by heart.

A check that training works from the data to the masks, for a CPU and a few minutes.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs' / 'demo' / 'cascade_mask_rcnn_pelk_narrow_overfit.py'


def main() -> None:
    """Read the command line, train, and print the scores on the same images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--data', type=Path, default=Path('data/coco'), help='COCO (%(default)s)'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/overfit'),
        help='folder for the training (%(default)s)',
    )
    parser.add_argument(
        '--images',
        type=int,
        default=4,
        help='how many, those of the largest objects first (%(default)s)',
    )
    parser.add_argument(
        '--iters', type=int, help="training iterations, instead of the config's own"
    )
    args = parser.parse_args()
    if args.iters is not None and args.iters < 2:
        parser.error(f'--iters {args.iters} is less than 2')
    # After the arguments: a wrong one should not wait for torch to load.
    from pelk_mm.demo.overfit import run_overfit

    try:
        result = run_overfit(CONFIG, args.data, args.out, args.images, args.iters)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'overfit.py: {error}')
    minutes = result.pop('minutes')
    scores = ', '.join(f'{name} {value:.3f}' for name, value in result.items())
    print(f'{args.images} images after {minutes:.1f} minutes: {scores}')


if __name__ == '__main__':
    main()
