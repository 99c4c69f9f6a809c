"""Draw loss, metrics and other curves of training runs from their logs.

A RUN is a work_dir, the folder of one start in it, or a log file (vis_data/*.json of
mmengine, *.log.json of mmcv 1.x). What a resumed run has done again replaces what it
did before. (The analyze_logs of mmseg and mmdet are in their repositories only, not in
their wheels, and each reads the logs of its own framework.)
"""

import argparse
import sys
from pathlib import Path

from pelk_mm_cli import positive


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', type=Path)
    parser.add_argument(
        '--keys',
        nargs='+',
        metavar='KEY',
        help='what to draw, such as loss lr mIoU bbox_mAP (default: the loss and the '
        'usual metrics)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('plot.png'),
        help='the picture; its ending chooses the format (default: %(default)s)',
    )
    parser.add_argument(
        '--legend', nargs='+', metavar='NAME', help='names of the runs, one for each'
    )
    parser.add_argument(
        '--smooth',
        type=positive,
        default=1,
        metavar='N',
        help='draw means of N records of the training (default: every record)',
    )
    args = parser.parse_args()
    if args.legend and len(args.legend) != len(args.runs):
        parser.error(
            f'--legend has {len(args.legend)} names for {len(args.runs)} runs; give '
            'one for each'
        )
    return args


def main() -> None:
    """Read the logs, print the table and draw the curves."""
    args = parse_args()
    # After the arguments: a wrong one should not wait for torch to load.
    from pelk_mm.analysis.log_pictures import draw_runs, picture_formats
    from pelk_mm.analysis.logs import (
        format_table,
        name_runs,
        read_run,
        require_keys,
        usual_keys,
    )
    from pelk_mm.checkpoints.files import write_output

    try:
        file_format = args.out.suffix[1:].lower()
        if file_format not in picture_formats():
            raise ValueError(
                f'{args.out} ends in none of .{", .".join(picture_formats())}'
            )
        runs = [read_run(path) for path in args.runs]
        keys = args.keys or usual_keys(runs)
        notices = [notice for run in runs for notice in run.notices]
        notices += require_keys(runs, keys)
        names = args.legend or name_runs(runs)
        for notice in notices:
            print(f'Note: {notice}.', file=sys.stderr)
        print(format_table(runs, names, keys))
        with write_output(args.out) as path:
            draw_runs(runs, names, keys, path, args.smooth, file_format)
    except ValueError as error:  # LogError and CheckpointError are too
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')
    print(f'Curves: {args.out}')


if __name__ == '__main__':
    main()
