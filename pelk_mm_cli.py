"""`pelk-mm TOOL ...` is `python tools/TOOL.py ...`, from a wheel too.

It is outside the package, whose import takes seconds for torch and mmengine: the list
of tools, the usage of one, and the error of a wrong command line should not wait.
"""

import ast
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import NoReturn

PACKAGE = Path(__file__).resolve().parent / 'pelk_mm'

USAGE = """usage: pelk-mm TOOL [ARGUMENT ...]

`pelk-mm TOOL --help` explains a tool. Where a tool takes a CONFIG, that may also be the
name of one of pelk_mm's own, such as upernet_pelk_t_ade20k.
"""

#: Tools whose first argument is a config. Others have `config_argument` as its type.
TAKE_CONFIG = {
    'train',
    'test',
    'dist_train',
    'dist_test',
    'get_flops',
    'benchmark',
    'switch_to_deploy',
    'visualize_kernels',
}


def files_root() -> Path:
    """Folder of ``configs`` and ``tools``: a wheel's ``.mim``, or the checkout."""
    mim = PACKAGE / '.mim'
    return mim if mim.is_dir() else PACKAGE.parent


def config_folder() -> Path:
    """Folder of the configs.

    Raises:
        FileNotFoundError: If the package was installed without them.
    """
    folder = files_root() / 'configs'
    if not (folder / '_base_').is_dir():
        raise FileNotFoundError(
            f'{PACKAGE} was installed without its configs; reinstall pelk_mm from its '
            'wheel or from a clone'
        )
    return folder


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the names that a wrong one is close to, or an empty string."""
    close = get_close_matches(name, known, n=3)
    return f'did you mean {" or ".join(close)}?' if close else ''


def config_path(name: str) -> Path:
    """Path of one of our configs by its name, with or without ``.py``.

    Raises:
        FileNotFoundError: If there is no such config.
    """
    folder = config_folder()
    paths = [*folder.glob('*.py'), *folder.glob('pretrain/*.py')]
    by_name = {path.stem: path for path in paths}
    path = by_name.get(name.removesuffix('.py'), folder / name)
    if not path.is_file():
        known = sorted(by_name)
        hint = did_you_mean(path.stem, known) or f'choose one of {", ".join(known)}'
        raise FileNotFoundError(f'there is no config {name!r}; {hint}')
    return path


def resolve_config(argument: str) -> str:
    """Replace the name of one of our configs by its path; leave anything else.

    Raises:
        FileNotFoundError: If a bare name is neither a file's nor a config's.
    """
    # Of a path that does not exist the tool itself complains.
    if argument.startswith('-') or '/' in argument or Path(argument).is_file():
        return argument
    return str(config_path(argument))


def config_argument(argument: str) -> str:
    """Type of an argparse argument, wherever it stands: a config's path or its name.

    Raises:
        argparse.ArgumentTypeError: If a bare name is neither a file's nor a config's.
    """
    try:
        return resolve_config(argument)
    except FileNotFoundError as error:
        raise ArgumentTypeError(error) from error


def positive(text: str) -> int:
    """Type of an argparse argument: an integer of 1 or more.

    Raises:
        argparse.ArgumentTypeError: If it is less.
    """
    number = int(text)
    if number < 1:
        raise ArgumentTypeError(f'{number} is not positive')
    return number


def find_tools() -> dict[str, Path]:
    """Scripts of ``tools`` and ``tools/analysis`` by name, in alphabetical order."""
    folder = files_root() / 'tools'
    paths = [*folder.glob('*.py'), *folder.glob('*.sh'), *folder.glob('analysis/*.py')]
    return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}


def summarize(tool: Path) -> str:
    """First line of a script's docstring or, of a shell script, its first comment."""
    text = tool.read_text()
    if tool.suffix == '.py':
        return (ast.get_docstring(ast.parse(text)) or '').partition('\n')[0]
    return text.splitlines()[1].removeprefix('#').strip()


def list_tools() -> str:
    """The usage, and a line for each tool."""
    lines = [f'  {name:<20}{summarize(path)}' for name, path in find_tools().items()]
    return '\n'.join([USAGE, *lines])


def resolve_configs(tool: str, arguments: Sequence[str]) -> list[str]:
    """Replace the name of a config of ours, where a tool takes one first, by its path.

    Raises:
        FileNotFoundError: If a bare name is neither a file's nor a config's.
    """
    if tool not in TAKE_CONFIG or not arguments:
        return list(arguments)
    first, *others = arguments
    return [resolve_config(first), *others]


def run_script(path: Path, arguments: Sequence[str], prog: str) -> None:
    """Run a Python file as the main program, in this process.

    Unlike `runpy.run_path` it leaves ``sys.argv[0]`` to the caller, the name that
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
    code = compile(path.read_bytes(), str(path), 'exec')
    exec(code, module.__dict__)  # noqa: S102 - a tool of ours or of the framework's


def main() -> None:
    """Run the tool that the command line names, or list all of them."""
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help'):
        print(list_tools())
        return
    name, *arguments = sys.argv[1:]
    if name == '--version':
        print(version('pelk_mm'))
        return
    tools = find_tools()
    if name not in tools:
        hint = f'{did_you_mean(name, tools)} `pelk-mm` lists the tools'.lstrip()
        _fail(f'pelk-mm: there is no tool {name!r}; {hint}')
    prog = f'pelk-mm {name}'
    try:
        arguments = resolve_configs(name, arguments)
    except FileNotFoundError as error:
        _fail(f'{prog}: {error}')
    if tools[name].suffix == '.sh':
        os.environ['PYTHON'] = sys.executable  # for the script to start Python with
        os.execvp('bash', ['bash', str(tools[name]), *arguments])
    try:
        run_script(tools[name], arguments, prog)
    except ModuleNotFoundError as error:
        from pelk_mm.install import explain_missing_stack, is_missing_stack

        if not is_missing_stack(error):
            raise
        sys.exit(f'{prog}: {explain_missing_stack()}')


def _fail(message: str) -> NoReturn:
    """End with the exit code of a wrong command line."""
    print(message, file=sys.stderr)
    sys.exit(2)
