"""Print the papers' parameters and FLOPs beside ours, as docs/model_zoo.md has them."""

import argparse
import os
import sys
from pathlib import Path

from pelk_mm.analysis.paper_table import format_tables

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
BEGIN, END = '<!-- paper_table: begin -->', '<!-- paper_table: end -->'


def replace_tables(page: Path, tables: str) -> None:
    """Put the tables between the two marks of a page.

    Raises:
        ValueError: If the page lacks a mark.
    """
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f'{page} lacks the lines {BEGIN} and {END}')
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    part = page.with_name(f'{page.name}.part')
    part.write_text(f'{before}{BEGIN}\n\n{tables}\n{END}{after}')
    os.replace(part, page)


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
