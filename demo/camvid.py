"""Train, test and compare the narrow backbones of configs/examples on CamVid.

One run per config and seed, one after another. A finished run is skipped, an
interrupted one goes on from its latest checkpoint: give the same command again.
A config whose name ends in _pretrained has its pre-training run first, by mmpretrain.
Tables of all runs, as Markdown and JSON, are in the folder of --out after each.
"""

import argparse
import sys
from pathlib import Path

from arguments import number_in

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'examples'
#: Those that are compared unless others are named, the first one in pictures: all that
#: need no mmpretrain.
NAMES = (
    'upernet_pelk_narrow_camvid',
    'upernet_pelk_narrow_camvid_sparse',
    'upernet_slak_narrow_camvid',
    'upernet_replknet_narrow_camvid',
    'upernet_convnext7_narrow_camvid',
)


def config_file(text: str) -> Path:
    """Path of a config from a path or the name of one of the examples."""
    path = Path(text)
    if not path.is_file():
        path = CONFIGS / f'{path.stem}.py'
    if not path.is_file():
        known = ', '.join(sorted(each.stem for each in CONFIGS.glob('upernet_*.py')))
        raise argparse.ArgumentTypeError(
            f'{text!r} is neither a file nor one of {known}'
        )
    return path.absolute()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--configs',
        type=config_file,
        nargs='+',
        default=[CONFIGS / f'{name}.py' for name in NAMES],
        metavar='CONFIG',
        help=f'names of configs/examples or paths (default: {" ".join(NAMES)})',
    )
    parser.add_argument(
        '--seeds',
        type=number_in(0, 2**32 - 1),
        nargs='+',
        default=[0, 1, 2],
        help='seeds of the trainings of each config (%(default)s)',
    )
    parser.add_argument(
        '--data',
        type=Path,
        default=Path('data/camvid'),
        help='folder with img_dir and ann_dir (%(default)s)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/camvid'),
        help='folder for trainings, tables and pictures (%(default)s)',
    )
    parser.add_argument(
        '--iters',
        type=number_in(2, 10**6),
        help="training iterations, instead of the config's own number",
    )
    parser.add_argument(
        '--plot',
        action='store_true',
        help='draw curves, six test images and receptive fields of the runs',
    )
    parser.add_argument(
        '--save-weights',
        type=config_file,
        nargs='+',
        default=[],
        metavar='CONFIG',
        help='of the run of these that was the best in validation, write the weights '
        'to demo/weights in float16, with an entry in the metafile',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='entries that replace those of every config',
    )
    args = parser.parse_args(argv)
    stems = [path.stem for path in args.configs]
    for stem in stems:
        if stems.count(stem) > 1:
            parser.error(f'--configs names {stem} twice, and runs are named after it')
    for path in args.save_weights:
        if path not in args.configs or path.parent != CONFIGS:
            parser.error(
                f'--save-weights {path.stem} is not one of --configs in {CONFIGS}'
            )
    for option in args.cfg_options:
        if '=' not in option:
            parser.error(f'--cfg-options {option} is not KEY=VALUE')
    return args


def main(argv: list[str] | None = None) -> None:
    """Train what is not trained, write the tables, and draw or save if asked."""
    args = parse_args(argv)
    if not args.data.is_dir():
        sys.exit(f'camvid.py: {args.data} does not exist; name the data with --data')
    # After the arguments: a wrong one should not wait for torch to load.
    from camvid_compare import compare

    try:
        tables = compare(args, ROOT)
    except KeyboardInterrupt:
        sys.exit('\ncamvid.py: interrupted; the same command goes on from here')
    except ValueError as error:  # RunError, NotFiniteError, CheckpointError
        sys.exit(f'camvid.py: {error}')
    print(f'\n{tables}')


if __name__ == '__main__':
    main()
