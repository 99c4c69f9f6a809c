"""Create a virtual environment with everything that pelk_mm needs.

mmcv ships no wheel for current PyTorch, so its operators are compiled here, once per
version of torch and Python: the wheel is kept in a cache that knows both.

Uses the standard library alone: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'pelk_mm'
BUILD_TOOLS = ('setuptools<81', 'wheel', 'ninja', 'psutil')
PRINT_TAG = (
    'import sys, torch; '
    'print(f"torch{torch.__version__}-{sys.implementation.cache_tag}")'
)


def say(message: str) -> None:
    """Print a progress message at once."""
    print(f'setup: {message}', flush=True)


def output_of(python: Path, code: str) -> str | None:
    """What a line of Python prints in the environment, or None if it fails."""
    result = subprocess.run(
        [python, '-c', code], capture_output=True, text=True, check=False, cwd='/'
    )
    return result.stdout.strip() if result.returncode == 0 else None


def pip(python: Path, *arguments: str) -> None:
    """Run pip in the environment; what it prints is shown only if it fails."""
    command = [python, '-m', 'pip', '--disable-pip-version-check', *arguments]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        sys.exit(f'{result.stdout}\nsetup: pip {" ".join(arguments)} failed, see above')


def build_wheel(python: Path, requirement: str, folder: Path) -> None:
    """Compile a wheel into a folder, telling how far the compiler is.

    The folder appears only when the wheel is complete.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder.parent, ignore_cleanup_errors=True
    ) as scratch:
        command = [python, '-m', 'pip', 'wheel', '-v', '--no-cache-dir', '--no-deps']
        command += ['--no-build-isolation', '-w', scratch, requirement]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        tail: list[str] = []
        told = -1
        for line in process.stdout:
            tail = [*tail[-60:], line]
            step = re.match(r'\s*\[(\d+)/(\d+)\] ', line)
            tenth = 10 * int(step[1]) // int(step[2]) if step else told
            if tenth > told:
                told = tenth
                say(f'compiling {requirement}: {step[1]} of {step[2]} files')
        if process.wait():
            sys.exit(f'{"".join(tail)}\nsetup: {requirement} did not compile')
        os.replace(scratch, folder)


def mmcv_wheel(python: Path, requirement: str, tag: str) -> Path:
    """The wheel of mmcv whose operators were compiled for this very torch."""
    folder = CACHE / f'{requirement.replace("==", "-")}-{tag}'
    if not folder.is_dir():
        say(f'compiling {requirement} for {tag}; this takes minutes, but only once')
        build_wheel(python, requirement, folder)
    (wheel,) = folder.glob('*.whl')
    return wheel


def main() -> None:
    """Parse the command line and bring the environment up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help='the virtual environment')
    parser.add_argument('--torch', default='torch', help='requirement for torch')
    args = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(f'setup: Python {sys.version.split()[0]} is older than 3.10')

    python = args.folder.absolute() / 'bin' / 'python'
    if not python.exists():
        say(f'creating {args.folder} with Python {sys.version.split()[0]}')
        venv.create(args.folder, with_pip=True)
    stamp = args.folder / '.pelk_mm'
    wanted = hashlib.sha256(args.torch.encode())
    for source in (ROOT / 'setup.py', Path(__file__)):
        wanted.update(source.read_bytes())
    wanted = wanted.hexdigest()
    done = stamp.read_text().split() if stamp.is_file() else []
    if not done or done[0] != wanted:
        say(f'installing {args.torch}')
        pip(python, 'install', args.torch, 'numpy', *BUILD_TOOLS)
    tag = output_of(python, PRINT_TAG)
    if done == [wanted, tag] and output_of(python, 'import mmcv.ops') is not None:
        return

    mmcv = re.search(r"'(mmcv==[^']+)'", (ROOT / 'setup.py').read_text()).group(1)
    wheel = mmcv_wheel(python, mmcv, tag)
    pip(python, 'install', '--no-deps', '--force-reinstall', str(wheel))
    say('installing pelk_mm with mmseg, mmdet and the test tools')
    pip(python, 'install', '--no-build-isolation', '-e', f'{ROOT}[openmmlab,dev]')
    if output_of(python, 'import mmcv.ops') is None:
        sys.exit(f'setup: mmcv of {wheel} does not import; remove it and try again')
    stamp.write_text(f'{wanted} {tag}')
    say('done')


if __name__ == '__main__':
    main()
