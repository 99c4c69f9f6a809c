"""Draw a small data set, train UperNet with a narrow PeLK on it, show the result."""

import argparse
import sys
import warnings
from pathlib import Path

from arguments import number_in

CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'demo'


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/demo'),
        help='folder for the scenes, the training and the report (%(default)s)',
    )
    parser.add_argument(
        '--config',
        type=Path,
        default=CONFIGS / 'upernet_pelk_narrow_drawn_scenes.py',
        help='another config of the same data, such as the sparse one next to this',
    )
    parser.add_argument(
        '--seed',
        type=number_in(0, 2**32 - 1),
        default=0,
        help='seed of scenes and training',
    )
    parser.add_argument(
        '--iters',
        type=number_in(10, 10**6),
        help="training iterations, instead of the config's own number",
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train in mixed precision: bfloat16 on the CPU, float16 on a GPU',
    )
    return parser.parse_args()


def main() -> None:
    """Run the demonstration."""
    args = parse_args()
    # After the arguments: a wrong one should not wait for torch to load.
    from run import run_demo

    # mmseg's notes to its own developers would hide the progress.
    warnings.filterwarnings('ignore', category=UserWarning, module='mmseg')

    try:
        run_demo(args.config, args.out, args.seed, args.iters, amp=args.amp)
    except (FileExistsError, FileNotFoundError, PermissionError) as error:
        sys.exit(f'demo.py: error: {error}')


if __name__ == '__main__':
    main()
