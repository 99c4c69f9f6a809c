"""Check every image and annotation of a config's data sets before training on them.

They are read by the steps of the pipelines that load, as in training. Errors would stop
a training or spoil it: files that are missing, damaged or of the wrong form, labels
that are no class, boxes and masks that mm drops or stumbles over. Warnings are to be
judged: images without objects, classes that never occur, duplicates across splits. Exit
code 1 if there are errors.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from pelk_mm_cli import config_argument


def count(text: str) -> int:
    """A number of processes from the command line."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f'{text} is not a number from 0')
    return number


def option(text: str) -> str:
    """An entry of the config from the command line."""
    if '=' not in text:
        raise argparse.ArgumentTypeError(f'{text} is not KEY=VALUE')
    return text


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', type=config_argument, help='config of a segmenter or a detector'
    )
    parser.add_argument(
        '--splits',
        nargs='+',
        choices=['train', 'val', 'test'],
        default=[],
        help='dataloaders to check (default: all that the config has)',
    )
    parser.add_argument(
        '--workers',
        type=count,
        default=len(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity')
        else os.cpu_count(),
        help='processes that read; 0 for none but this one (default: %(default)s)',
    )
    parser.add_argument(
        '--json', type=Path, metavar='FILE', help='write everything that was found'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        type=option,
        metavar='KEY=VALUE',
        default=[],
        help='entries that replace those of the config',
    )
    args = parser.parse_args(argv)
    if args.json is not None and not args.json.absolute().parent.is_dir():
        parser.error(f'--json {args.json}: its folder does not exist')
    if args.json is not None and args.json.is_dir():
        parser.error(f'--json {args.json} is a folder; give a file')
    return args


def main(argv: list[str] | None = None) -> int:
    """Check and print.

    Returns:
        The exit code.
    """
    args = parse_args(argv)
    # After the arguments: a wrong one should not wait for torch to load.
    from mmengine.config import DictAction

    from pelk_mm.config_types import ConfigError, read_config
    from pelk_mm.engine.dataset_check import (
        as_json,
        check_dataset,
        count_levels,
        format_reports,
    )
    from pelk_mm.engine.dataset_check.workers import show_progress
    from pelk_mm.engine.launch import LaunchError
    from pelk_mm.files import write_atomically

    options = argparse.ArgumentParser()
    options.add_argument('--cfg-options', nargs='*', action=DictAction, default={})
    given = options.parse_args(['--cfg-options', *args.cfg_options]).cfg_options
    name = Path(sys.argv[0]).name
    try:
        cfg = read_config(args.config, given)
        reports = check_dataset(cfg, args.splits, args.workers, show_progress)
    except (ConfigError, LaunchError) as error:
        print(f'{name}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'\n{name}: interrupted, nothing is reported', file=sys.stderr)
        return 130
    print(f'{args.config}\n\n{format_reports(reports)}')
    if args.json is not None:
        try:
            with write_atomically(args.json) as temporary:
                temporary.write_text(json.dumps(as_json(reports), indent=1))
        except OSError as error:
            print(f'{name}: {args.json} cannot be written: {error}', file=sys.stderr)
            return 1
    return 1 if count_levels(reports)[0] else 0


if __name__ == '__main__':
    sys.exit(main())
