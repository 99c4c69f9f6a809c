"""Print the papers' parameters and FLOPs beside ours, as docs/model_zoo.md has them."""

import argparse
import sys
from pathlib import Path

from pelk_mm.analysis.paper_table import format_tables, replace_tables

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def main() -> None:
    """Count and print, or write into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--write', type=Path, metavar='PAGE', help='put the tables into a page instead'
    )
    args = parser.parse_args()
    if args.write is None:
        for line in format_tables(CONFIGS):
            print(line, flush=True)
        return
    try:
        replace_tables(args.write, '\n'.join(format_tables(CONFIGS)))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'paper_table.py: {error}')


if __name__ == '__main__':
    main()
