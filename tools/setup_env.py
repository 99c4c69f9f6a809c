"""Create a virtual environment with everything that pelk_mm needs.

mmcv ships no wheel for current PyTorch, so its operators are compiled here, once per
version of torch and Python: the wheel is kept in a cache that knows both. Run again,
it installs or builds only what has changed since.

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
OPS = ROOT / 'pelk_mm' / 'ops'
CACHE = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'pelk_mm'
# What wheels are compiled for, and what names of compiled modules end in.
PRINT_TAGS = (
    'import sys, sysconfig, torch; '
    'print(f"torch{torch.__version__}-{sys.implementation.cache_tag}", '
    'sysconfig.get_config_var("EXT_SUFFIX"))'
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


def read_extra(name: str) -> list[str]:
    """Requirements of an extra in pyproject.toml, which has one per line.

    Python 3.10 has no parser for the format.
    """
    text = (ROOT / 'pyproject.toml').read_text()
    extra = re.search(rf'^{re.escape(name)} = \[\n(.*?)^\]', text, re.M | re.S)
    found = re.findall(r'^ *"([^"]+)"', extra[1], re.M) if extra else []
    if not found:
        sys.exit(f'setup: pyproject.toml has no extra {name!r} with one line each')
    return found


def digest(files: list[Path], *texts: str) -> str:
    """A hash of texts and of names and contents of files."""
    sums = hashlib.sha256()
    for file in files:
        texts += (file.name, hashlib.sha256(file.read_bytes()).hexdigest())
    sums.update('\n'.join(texts).encode())
    return sums.hexdigest()


def built_kernels(suffix: str) -> list[Path]:
    """Compiled kernels of the Pythons whose compiled modules' names end in a suffix."""
    return sorted(OPS.rglob(f'*{suffix}'))


def kernels_digest(suffix: str) -> str:
    """A hash of the kernels' sources and of what was built from them.

    With the latter in it, a library that came from elsewhere is built anew too.
    """
    sources = sorted(path for path in (OPS / 'csrc').rglob('*') if path.is_file())
    return digest([ROOT / 'setup.py', *sources, *built_kernels(suffix)])


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
    parser.add_argument(
        '--stack',
        choices=('openmmlab', 'onedl'),
        default='openmmlab',
        help='OpenMMLab as released, or its maintained forks (%(default)s)',
    )
    args = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(f'setup: Python {sys.version.split()[0]} is older than 3.10')

    python = args.folder.absolute() / 'bin' / 'python'
    if not python.exists():
        say(f'creating {args.folder} with Python {sys.version.split()[0]}')
        venv.create(args.folder, with_pip=True)
    stamp = args.folder / '.pelk_mm'
    packages = digest([ROOT / 'pyproject.toml', Path(__file__)], args.torch, args.stack)
    done = stamp.read_text().split() if stamp.is_file() else []
    if done[:1] != [packages]:
        say(f'installing {args.torch}')
        pip(python, 'install', args.torch, 'numpy', *read_extra('build'))
    tags = output_of(python, PRINT_TAGS)
    if tags is None:
        sys.exit(f'setup: torch does not import; remove {args.folder} and try again')
    tag, suffix = tags.split()

    if done[:2] != [packages, tag] or output_of(python, 'import mmcv.ops') is None:
        mmcv = next(name for name in read_extra(args.stack) if 'mmcv==' in name)
        wheel = mmcv_wheel(python, mmcv, tag)
        pip(python, 'install', '--no-deps', '--force-reinstall', str(wheel))
        say('installing pelk_mm with mmseg, mmdet and the test tools')
        target = ['-e', f'{ROOT}[{args.stack},dev]']
    elif done[2:] != [kernels_digest(suffix)]:
        say('building the CPU kernels, whose sources have changed')
        target = ['--no-deps', '-e', str(ROOT)]
    else:
        return
    # A build that fails leaves none, rather than those of old sources.
    for library in built_kernels(suffix):
        library.unlink()
    pip(python, 'install', '--no-build-isolation', *target)
    if output_of(python, 'import mmcv.ops') is None:
        sys.exit(f'setup: mmcv does not import; remove {CACHE} and try again')
    if not built_kernels(suffix):
        say('no CPU kernels: they did not compile, and torch does their work')
    stamp.write_text(f'{packages} {tag} {kernels_digest(suffix)}')
    say('done')


if __name__ == '__main__':
    main()
