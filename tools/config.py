"""Print the path of a config, or of the folder with all configs."""

import argparse
import sys

from pelk_mm_cli import config_folder, config_path


def main() -> None:
    """Print the path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('name', nargs='?', help='a config; without it, their folder')
    args = parser.parse_args()
    try:
        print(config_path(args.name) if args.name else config_folder())
    except FileNotFoundError as error:
        sys.exit(f'{parser.prog}: {error}')


if __name__ == '__main__':
    main()
