"""Print the papers' parameters and FLOPs next to ours, as in docs/model_zoo.md."""

import argparse
import sys
from pathlib import Path


def main() -> None:
    """Count and print, or write into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--write', type=Path, metavar='PAGE', help='put the tables into a page instead'
    )
    args = parser.parse_args()
    # After the arguments: a wrong one should not wait for torch to load.
    from pelk_mm.analysis.paper_table import format_tables
    from pelk_mm.files import replace_marked
    from pelk_mm_cli import config_folder

    try:
        tables = format_tables(config_folder())
        if args.write is None:
            for line in tables:
                print(line, flush=True)
        else:
            replace_marked(args.write, 'paper_table', '\n'.join(tables))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')


if __name__ == '__main__':
    main()
