"""Where the configs are: `python -m pelk_mm.configs [NAME]` prints the path."""

import argparse
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def config_folder() -> Path:
    """Folder of the configs, in an installed package or in a checkout.

    Raises:
        FileNotFoundError: If the package was installed without them.
    """
    for folder in (PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs'):
        if (folder / '_base_').is_dir():
            return folder
    raise FileNotFoundError(
        f'{PACKAGE} was installed without its configs; reinstall pelk_mm from its wheel'
    )


def config_path(name: str) -> Path:
    """Path of a config by its name, with or without ``.py``.

    Raises:
        FileNotFoundError: If there is no such config.
    """
    folder = config_folder()
    path = folder / f'{name.removesuffix(".py")}.py'
    if not path.is_file():
        known = ', '.join(sorted(path.stem for path in folder.glob('*.py')))
        raise FileNotFoundError(f'there is no config {name!r}; choose one of {known}')
    return path


def main() -> None:
    """Print the path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('name', nargs='?', help='a config; without it, their folder')
    args = parser.parse_args()
    try:
        print(config_path(args.name) if args.name else config_folder())
    except FileNotFoundError as error:
        sys.exit(f'pelk_mm.configs: {error}')


if __name__ == '__main__':
    main()
