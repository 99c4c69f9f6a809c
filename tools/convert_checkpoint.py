"""Convert a released SLaK or RepLKNet checkpoint, or start PeLK from one."""

import argparse
import sys
from pathlib import Path

from pelk_mm_cli import positive

EXIT_CODES = """exit codes:
  0  the conversion is complete
  1  refused or incomplete: nothing was written
  2  the command line is wrong
  3  incomplete, and written because of --no-strict
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('src', help='checkpoint to read: a path or an http(s):// URL')
    parser.add_argument('dst', help='file to write: .pth, .pt or .safetensors')
    parser.add_argument(
        '--arch',
        choices=('auto', 'pelk', 'slak', 'replknet'),
        default='auto',
        help='family that SRC must be of (%(default)s: inferred from its names)',
    )
    parser.add_argument(
        '--ema',
        action=argparse.BooleanOptionalAction,
        help='take the averaged weights, or those without averaging (default: model '
        "rather than model_ema, and mmengine's state_dict, which is averaged)",
    )
    parser.add_argument(
        '--from-prefix',
        help="what the backbone's names start with in SRC, to choose from several "
        'backbones (default: the only one)',
    )
    parser.add_argument(
        '--prefix',
        help="prefix of the backbone's names in DST (default: backbone. in whole "
        'models, none otherwise); heads are dropped with any other than backbone.',
    )
    parser.add_argument(
        '--classifier',
        action='store_true',
        help="keep a released classifier's norm and linear layer: DST is a whole model "
        'of mmpretrain',
    )
    parser.add_argument(
        '--outer-taps',
        choices=('keep', 'zero', 'crop'),
        default='keep',
        help='what becomes of taps that the training never used, since its maps were '
        'too small for them (%(default)s)',
    )
    parser.add_argument(
        '--trained-at',
        type=positive,
        default=224,
        metavar='PIXELS',
        help='height and width of the images of that training (%(default)s)',
    )
    parser.add_argument(
        '--in-channels',
        type=int,
        help="channels of the images: adapt the stem's weights (default: as in SRC)",
    )
    parser.add_argument(
        '--strict',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='write nothing unless the conversion is complete',
    )
    parser.add_argument(
        '--to',
        choices=('mm', 'official'),
        default='mm',
        help="names to write: this package's or the released ones (%(default)s)",
    )
    parser.add_argument(
        '--warm-start',
        metavar='pelk[-ARCH]',
        help="start a PeLK from SRC's weights: pelk keeps SRC's sizes, and "
        'pelk-tiny-101, for example, asks for those of that arch',
    )
    parser.add_argument('--dry-run', action='store_true', help='report, write nothing')
    parser.add_argument('--force', action='store_true', help='replace DST if it exists')
    parser.add_argument('--json', type=Path, help='write the report to this file too')
    args = parser.parse_args(argv)
    start = args.warm_start
    if start is not None and start != 'pelk' and not start.startswith('pelk-'):
        parser.error(f'--warm-start {start!r} is not pelk or pelk-ARCH')
    if args.in_channels is not None and args.in_channels < 1:
        parser.error(f'--in-channels {args.in_channels} is not a positive number')
    if args.json is not None and not args.json.absolute().parent.is_dir():
        parser.error(f'--json {args.json} is in no existing folder')
    return args


def main(argv: list[str] | None = None) -> int:
    """Convert and report.

    Returns:
        The exit code.
    """
    args = parse_args(argv)
    # After the arguments: a wrong one should not wait for torch to load.
    from pelk_mm.checkpoints.files import CheckpointError
    from pelk_mm.conversion.convert import convert_checkpoint
    from pelk_mm.conversion.report import (
        describe,
        fitting_configs,
        show_progress,
        write_json,
    )
    from pelk_mm_cli import config_folder

    report, configs, error = None, [], None
    try:
        config_dir = config_folder()
        report = convert_checkpoint(
            args.src,
            args.dst,
            arch=args.arch,
            ema=args.ema,
            from_prefix=args.from_prefix,
            prefix=args.prefix,
            in_channels=args.in_channels,
            classifier=args.classifier,
            outer_taps=args.outer_taps,
            trained_at=args.trained_at,
            strict=args.strict,
            official=args.to == 'official',
            warm_start=args.warm_start,
            force=args.force,
            dry_run=args.dry_run,
            track=show_progress,
        )
        configs = fitting_configs(report, config_dir)
        print(describe(report, configs))
        if not report.complete:
            error = f'{args.src} is incomplete: {report.summarise_problems()}; ' + (
                f'{args.dst} has the rest' if report.written else 'nothing was written'
            )
    except (CheckpointError, FileNotFoundError) as problem:
        error = str(problem)
    if args.json is not None:
        try:
            write_json(args.json, report, configs, error)
        except CheckpointError as problem:
            error = str(problem)
    if error is not None:
        print(f'{Path(sys.argv[0]).name}: {error}', file=sys.stderr)
        return 3 if report is not None and report.written else 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
