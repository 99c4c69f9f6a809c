"""`pelk-mm TOOL ...` is `python tools/TOOL.py ...`, from a wheel too."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from .configs import config_path
from .install import explain_missing_stack, is_missing_stack
from .scripts import find_tools, run_script, run_shell_script, summarize
from .version import __version__

USAGE = """usage: pelk-mm TOOL [ARGUMENT ...]

`pelk-mm TOOL --help` explains a tool. Where a tool takes a CONFIG first, that may also
be the name of one of pelk_mm's own, such as upernet_pelk_t_ade20k.
"""

#: Tools whose first argument is a config.
TAKE_CONFIG = {
    'train',
    'test',
    'dist_train',
    'dist_test',
    'get_flops',
    'switch_to_deploy',
}


def list_tools() -> str:
    """The usage, and a line for each tool."""
    lines = [f'  {name:<20}{summarize(path)}' for name, path in find_tools().items()]
    return '\n'.join([USAGE, *lines])


def resolve_config(tool: str, arguments: Sequence[str]) -> list[str]:
    """Replace the name of one of our configs, where a tool takes one, by its path.

    Raises:
        FileNotFoundError: If a bare name is neither a file's nor a config's.
    """
    if tool not in TAKE_CONFIG or not arguments:
        return list(arguments)
    first, *others = arguments
    # Of a path that does not exist the tool itself complains.
    if first.startswith('-') or '/' in first or Path(first).is_file():
        return list(arguments)
    return [str(config_path(first)), *others]


def main() -> None:
    """Run the tool that the command line names, or list all of them."""
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help'):
        print(list_tools())
        return
    name, *arguments = sys.argv[1:]
    if name == '--version':
        print(__version__)
        return
    tools = find_tools()
    if name not in tools:
        close = get_close_matches(name, tools, n=3)
        hint = f'did you mean {" or ".join(close)}? ' if close else ''
        _fail(f'pelk-mm: there is no tool {name!r}; {hint}`pelk-mm` lists the tools')
    prog = f'pelk-mm {name}'
    try:
        arguments = resolve_config(name, arguments)
    except FileNotFoundError as error:
        _fail(f'{prog}: {error}')
    if tools[name].suffix == '.sh':
        run_shell_script(tools[name], arguments)
    try:
        run_script(tools[name], arguments, prog)
    except ModuleNotFoundError as error:
        if not is_missing_stack(error):
            raise
        sys.exit(f'{prog}: {explain_missing_stack()}')


def _fail(message: str) -> NoReturn:
    """End with the exit code of a wrong command line."""
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
    main()
