"""What pelk_mm needs beyond torch, and the commands that install it."""

import re
import shlex
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
#: What everything but `pelk_mm.ops` imports.
STACK = ('mmengine', 'mmcv')


def requirements(extra: str) -> list[str]:
    """Requirements of an extra of pyproject.toml, as the installed package states them.

    Args:
        extra: Such as ``openmmlab``.

    Returns:
        Such as ``['mmengine==0.10.7', 'mmcv==2.1.0', ...]``.

    Raises:
        ValueError: If there is no such extra.
        importlib.metadata.PackageNotFoundError: If pelk_mm runs without being
            installed.
    """
    found = []
    for line in requires('pelk_mm') or ():
        requirement, _, marker = line.partition(';')
        if re.search(rf'extra == (["\']){re.escape(extra)}\1', marker):
            found.append(requirement.strip())
    if not found:
        raise ValueError(f'the installed pelk_mm has no extra {extra!r}')
    return found


def install_command(extra: str = 'openmmlab') -> str:
    """Shell command that installs the packages of an extra where the reader is.

    Args:
        extra: ``openmmlab``; ``onedl``, its maintained forks; ``export``.
    """
    checkout = not (PACKAGE / '.mim').is_dir()

    def packages(name: str) -> str:
        # pelk_mm is on no index: only a checkout can be asked for its extras.
        names = [f'{PACKAGE.parent}[{name}]'] if checkout else requirements(name)
        return shlex.join(names)

    if extra not in ('openmmlab', 'onedl'):
        return f'pip install {packages(extra)}'
    return (
        f'pip install {packages("build")} && '
        f'pip install --no-build-isolation {packages(extra)}'
    )


def missing_stack() -> list[str]:
    """Those of mmengine and mmcv that are not installed."""
    return [name for name in STACK if find_spec(name) is None]


def is_missing_stack(error: ModuleNotFoundError) -> bool:
    """Whether an import failed because mmengine or mmcv is not installed."""
    return (error.name or '').partition('.')[0] in missing_stack()


def explain_missing_stack() -> str:
    """One sentence: what is missing, what works without it, and the remedy."""
    return (
        f'{" and ".join(missing_stack())} cannot be found, and only pelk_mm.ops works '
        f'without: run `{install_command()}`'
    )
