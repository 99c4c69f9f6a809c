"""Find and run the command lines in ``tools``."""

import ast
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from .install import mim_root


def find_tools() -> dict[str, Path]:
    """Scripts of ``tools`` and ``tools/analysis`` by name, in alphabetical order."""
    folder = mim_root() / 'tools'
    paths = [*folder.glob('*.py'), *folder.glob('*.sh'), *folder.glob('analysis/*.py')]
    return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}


def summarize(tool: Path) -> str:
    """First line of a script's docstring or, of a shell script, its first comment."""
    text = tool.read_text()
    if tool.suffix == '.py':
        return (ast.get_docstring(ast.parse(text)) or '').partition('\n')[0]
    return text.splitlines()[1].removeprefix('#').strip()


def run_script(path: Path, arguments: Sequence[str], prog: str) -> None:
    """Run a Python file as the main program, in this process.

    Unlike `runpy.run_path` it leaves the name in ``sys.argv[0]`` to the caller, which
    argparse prints in usage and errors.

    Args:
        path: The file.
        arguments: Command-line arguments, without a name.
        prog: Name of the program.
    """
    sys.argv = [prog, *arguments]
    module = ModuleType('__main__')
    module.__file__ = str(path)
    sys.modules['__main__'] = module
    exec(compile(path.read_bytes(), str(path), 'exec'), module.__dict__)


def run_shell_script(path: Path, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by bash running a file; ``$PYTHON`` is this interpreter.

    Raises:
        FileNotFoundError: If there is no bash.
    """
    environment = {**os.environ, 'PYTHON': sys.executable}
    os.execvpe('bash', ['bash', str(path), *arguments], environment)
