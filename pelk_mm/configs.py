"""Where the configs are, in an installed package or in a checkout."""

from difflib import get_close_matches
from pathlib import Path

from .install import PACKAGE, mim_root


def config_folder() -> Path:
    """Folder of the configs.

    Raises:
        FileNotFoundError: If the package was installed without them.
    """
    folder = mim_root() / 'configs'
    if not (folder / '_base_').is_dir():
        raise FileNotFoundError(
            f'{PACKAGE} was installed without its configs; reinstall pelk_mm from its '
            'wheel or from a clone'
        )
    return folder


def config_path(name: str) -> Path:
    """Path of one of our configs by its name, with or without ``.py``.

    Raises:
        FileNotFoundError: If there is no such config.
    """
    folder = config_folder()
    path = folder / f'{name.removesuffix(".py")}.py'
    if not path.is_file():
        known = sorted(path.stem for path in folder.glob('*.py'))
        close = get_close_matches(path.stem, known, n=3)
        hint = (
            f'did you mean {" or ".join(close)}?'
            if close
            else f'choose one of {", ".join(known)}'
        )
        raise FileNotFoundError(f'there is no config {name!r}; {hint}')
    return path
