"""Draw a small data set, train UperNet with a narrow PeLK on it, show the result."""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs' / 'demo' / 'upernet_pelk_narrow_drawn_scenes.py'


def number_in(least: int, most: int) -> Callable[[str], int]:
    """Make an argument type: a whole number in a range."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f'{text!r} is not a whole number from {least} to {most}'
            )
        return number

    return parse


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
    return parser.parse_args()


def main() -> None:
    """Run the demonstration."""
    args = parse_args()
    # After the arguments: a wrong one should not wait for torch to load.
    from pelk_mm.demo.run import run_demo

    # mmseg's notes to its own developers would hide the progress.
    warnings.filterwarnings('ignore', category=UserWarning, module='mmseg')

    try:
        run_demo(CONFIG, args.out, args.seed, args.iters)
    except (FileExistsError, PermissionError) as error:
        sys.exit(f'{Path(sys.argv[0]).name}: error: {error}')


if __name__ == '__main__':
    main()
