"""Lock, list or audit the packages of the test environment.

``lock`` writes the locks in requirements/ anew, from what pyproject.toml asks for;
``sbom`` writes what an environment has installed, as CycloneDX; ``audit`` looks the
locks up in an advisory database. `make lock`, `make sbom` and `make audit` run it with
the packages of the extra ``supply``; nothing of pelk_mm is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setup_env import LOCKS, ROOT, locked_name, read_extra, read_lock

STACKS = ('openmmlab', 'onedl')
HEADER = '# Versions and hashes of files, for every Python and platform: `make lock`.\n'
# A path of the machine: an absolute one, or an address of a file on it.
PATH = re.compile(r'file:|(?:^|[\s"\'=(])(?:/(?!/)[\w.~-]+/|[A-Za-z]:\\)')


def lock_path(name: str) -> Path:
    """The file of a lock."""
    return LOCKS / f'{name}.txt'


def write(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it."""
    number, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f'.{path.name}.')
    try:
        with os.fdopen(number, 'w') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def run(*command: str | Path) -> str:
    """Run a command of this environment and return what it prints.

    It ends the program where the command fails; its own messages say why.
    """
    path = Path(sys.executable).parent / command[0]
    done = subprocess.run([path, *command[1:]], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        shown = ' '.join(map(str, command))
        sys.exit(f'{done.stdout}\nsupply_chain: {shown} failed')
    return done.stdout


def resolve(requirements: list[str], *options: str | Path) -> str:
    """Versions that fit requirements, with hashes, for every Python that is supported.

    mmcv states its requirements only when it is built, and setuptools 81 cannot.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wanted, build = Path(scratch) / 'wanted.in', Path(scratch) / 'build.txt'
        wanted.write_text('\n'.join(requirements))
        build.write_text('setuptools<81\n')
        command = ['uv', 'pip', 'compile', wanted, '--build-constraint', build]
        command += ['--universal', '--python-version', '3.10', '--generate-hashes']
        command += ['--no-annotate', '--no-header', '--no-config', '--upgrade']
        return run(*command, '--quiet', *options)


def read_extras(*names: str) -> list[str]:
    """Requirements of extras, and of the extras of pelk_mm that they name."""
    found = []
    for requirement in [line for name in names for line in read_extra(name)]:
        own = re.fullmatch(r'pelk_mm\[(.+)\]', requirement)
        found += read_extras(*own[1].split(',')) if own else [requirement]
    return found


def lock(torch: str) -> None:
    """Write all locks."""
    LOCKS.mkdir(exist_ok=True)
    wanted = [torch, 'numpy', *read_extra('build')]
    write(lock_path('torch'), HEADER + resolve(wanted))
    # What was installed with torch stays as it is, whichever torch it was.
    present = {locked_name(entry) for entry in read_lock('torch')}
    skip = [f'--no-emit-package={name}' for name in sorted(present)]
    for stack in STACKS:
        wanted = read_extras(stack, 'dev')
        options = ('--constraint', lock_path('torch'), *skip)
        write(lock_path(stack), HEADER + resolve(wanted, *options))
    write(lock_path('supply'), HEADER + resolve(read_extra('supply')))
    for name in ('torch', *STACKS, 'supply'):
        entries = read_lock(name)
        hashes = sum(entry.count('--hash=') for entry in entries)
        print(f'{LOCKS.name}/{name}.txt: {len(entries)} pins, {hashes} hashes')


def without_paths(node: Any) -> Any:
    """A list of components without references to files of this machine.

    Raises:
        ValueError: If a path is anywhere else.
    """
    if isinstance(node, dict):
        return {key: without_paths(value) for key, value in node.items()}
    if isinstance(node, list):
        return [
            without_paths(entry)
            for entry in node
            if not (isinstance(entry, dict) and 'file:' in str(entry.get('url')))
        ]
    if isinstance(node, str) and PATH.search(node):
        raise ValueError(f'the list of packages contains a path: {node!r}')
    return node


def complete(text: str) -> str:
    """What `cyclonedx-py` prints, with our version and without paths."""
    listed = json.loads(text)
    version = (ROOT / 'pelk_mm' / 'version.py').read_text()
    listed['metadata']['component']['version'] = re.search(r"'([\d.]+)'", version)[1]
    return json.dumps(without_paths(listed), indent=1, sort_keys=True) + '\n'


def sbom(environment: Path, out: Path) -> None:
    """Write the packages of an environment as CycloneDX, validated."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    if not (environment / 'bin' / 'python').exists():
        sys.exit(f'supply_chain: {environment} is no environment; `make env` makes one')
    command = ['cyclonedx-py', 'environment', '--pyproject', ROOT / 'pyproject.toml']
    command += ['--mc-type', 'library', '--output-reproducible', '--sv', '1.6']
    text = complete(run(*command, '--no-validate', environment))
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error:
        sys.exit(f'supply_chain: the list of packages is no CycloneDX 1.6: {error}')
    write(out, text)
    print(f'{out}: {len(json.loads(text)["components"])} packages, CycloneDX 1.6')


def audit() -> None:
    """Look every pin of the locks up; an unanswered question is a failure too."""
    files = [part for name in ('torch', *STACKS) for part in ('-r', lock_path(name))]
    print(run('pip-audit', '--strict', '--disable-pip', '--require-hashes', *files))


def main() -> None:
    """Parse the command line and do what it names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    each = commands.add_parser('lock', help='write the locks in requirements/ anew')
    each.add_argument('--torch', required=True, help='such as torch==2.13.0')
    each = commands.add_parser('sbom', help='list what an environment has installed')
    each.add_argument('environment', type=Path)
    each.add_argument('out', type=Path)
    commands.add_parser('audit', help='look the locks up in an advisory database')
    args = vars(parser.parse_args())
    tasks: dict[str, Callable[..., None]] = dict(lock=lock, sbom=sbom, audit=audit)
    tasks[args.pop('command')](**args)


if __name__ == '__main__':
    main()
