"""Create a virtual environment with everything that pelk_mm needs.

mmcv ships no wheel for current PyTorch, so its operators are compiled here, once per
version of torch and Python: the wheel is kept in a cache that knows both. Its sources
have to have the hash that the lock in requirements/ states; with --lock everything else
has to as well. Run again, it installs or builds only what has changed since.

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
LOCKS = ROOT / 'requirements'
# How the names of packages begin that some builds of torch need and others do not.
TORCH_PACKAGES = ('torch', 'nvidia-', 'cuda-')
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


def pip_locked(python: Path, entries: list[str], *options: str) -> None:
    """Let pip install entries of a lock, each of which states its hashes."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / 'requirements.txt'
        file.write_text('\n'.join(entries))
        pip(python, 'install', '--require-hashes', *options, '-r', str(file))


def build_wheel(
    python: Path, requirement: str, folder: Path, entries: list[str] | None = None
) -> None:
    """Compile a wheel into a folder, telling how far the compiler is.

    The folder appears only when the wheel is complete. Where ``entries`` of a lock are
    given, only sources with their hashes are compiled.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder.parent, ignore_cleanup_errors=True
    ) as scratch:
        wheels, file = Path(scratch) / 'wheels', Path(scratch) / 'requirements.txt'
        file.write_text('\n'.join(entries or [requirement]))
        command = [python, '-m', 'pip', 'wheel', '-v', '--no-cache-dir', '--no-deps']
        command += ['--no-build-isolation', '-w', wheels, '-r', file]
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
        try:
            os.replace(wheels, folder)
        except OSError:  # another setup has compiled the same meanwhile
            if not folder.is_dir():
                raise


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


def read_lock(name: str) -> list[str]:
    """Entries of a lock: a pinned requirement and the hashes of its files each."""
    path = LOCKS / f'{name}.txt'
    if not path.is_file():
        sys.exit(f'setup: {path} does not exist; `make lock` writes it')
    text = re.sub(r'(?m)^#.*\n?', '', path.read_text()).strip()
    entries = re.split(r'\n(?=\w)', text) if text else []
    for entry in entries:
        if not re.match(
            r'[\w.-]+==[^\n]+(\n +--hash=sha256:[0-9a-f]{64}[^\n]*)+', entry
        ):
            first = entry.splitlines()[0]
            sys.exit(f'setup: {path} has no hash for {first!r}; `make lock` writes it')
    return entries


def locked_name(entry: str) -> str:
    """Name of the package of an entry of a lock."""
    return entry.partition('==')[0]


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


def remove_kernels(suffix: str) -> None:
    """Remove what was built: a build that fails leaves none, not one of old sources."""
    for library in built_kernels(suffix):
        library.unlink()


def kernels_digest(suffix: str) -> str:
    """A hash of the kernels' sources and of what was built from them.

    With the latter in it, a library that came from elsewhere is built anew too.
    """
    sources = sorted(path for path in (OPS / 'csrc').rglob('*') if path.is_file())
    return digest([ROOT / 'setup.py', *sources, *built_kernels(suffix)])


def mmcv_wheel(python: Path, requirement: str, tag: str, stack: str) -> Path:
    """The wheel of mmcv whose operators were compiled for this very torch."""
    folder = CACHE / f'{requirement.replace("==", "-")}-{tag}'
    if not folder.is_dir():
        pinned = re.compile(re.escape(requirement) + r'(?![\w.])')
        entries = [entry for entry in read_lock(stack) if pinned.match(entry)]
        if not entries:
            sys.exit(
                f'setup: the lock has no {requirement}; `make lock` writes it anew'
            )
        say(f'compiling {requirement} for {tag}; this takes minutes, but only once')
        build_wheel(python, requirement, folder, entries)
    (wheel,) = folder.glob('*.whl')
    return wheel


def install_torch(python: Path, torch: str, lock: bool) -> None:
    """Install torch and what compiling needs."""
    say(f'installing {torch}')
    if not lock:
        pip(python, 'install', torch, 'numpy', *read_extra('build'))
        return
    entries = read_lock('torch')
    pinned = [entry for entry in entries if re.match(r'torch==\S+', entry)]
    if [entry.split()[0] for entry in pinned] == [torch.replace(' ', '')]:
        pip_locked(python, entries)
        return
    others = [e for e in entries if not locked_name(e).startswith(TORCH_PACKAGES)]
    pip_locked(python, others, '--no-deps')
    say(f'{torch} is not the torch of the lock: it is installed without a hash')
    pip(python, 'install', torch)


def install_package(python: Path, stack: str, lock: bool) -> None:
    """Install pelk_mm with what it and its tests need; mmcv is there already."""
    say('installing pelk_mm with mmseg, mmdet and the test tools')
    if not lock:
        target = f'{ROOT}[{stack},dev]'
        pip(python, 'install', '--no-build-isolation', '-e', target)
        return
    # The wheel of mmcv was compiled here, from sources that had their hash.
    entries = [e for e in read_lock(stack) if not re.match(r'(onedl-)?mmcv==', e)]
    pip_locked(python, entries, '--no-deps', '--no-build-isolation')
    pip(python, 'install', '--no-build-isolation', '--no-deps', '-e', str(ROOT))


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
    parser.add_argument(
        '--lock',
        action='store_true',
        help='install the versions and files that the locks in requirements/ name',
    )
    args = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(f'setup: Python {sys.version.split()[0]} is older than 3.10')

    python = args.folder.absolute() / 'bin' / 'python'
    if not python.exists():
        say(f'creating {args.folder} with Python {sys.version.split()[0]}')
        venv.create(args.folder, with_pip=True)
    stamp = args.folder / '.pelk_mm'
    sources = [ROOT / 'pyproject.toml', Path(__file__)]
    if args.lock:
        for name in ('torch', args.stack):
            read_lock(name)  # what is wrong with it is said before anything is done
            sources.append(LOCKS / f'{name}.txt')
    packages = digest(sources, args.torch, args.stack)
    done = stamp.read_text().split() if stamp.is_file() else []
    if done[:1] != [packages]:
        install_torch(python, args.torch, args.lock)
    tags = output_of(python, PRINT_TAGS)
    if tags is None:
        sys.exit(f'setup: torch does not import; remove {args.folder} and try again')
    tag, suffix = tags.split()

    if done[:2] != [packages, tag] or output_of(python, 'import mmcv.ops') is None:
        mmcv = next(name for name in read_extra(args.stack) if 'mmcv==' in name)
        wheel = mmcv_wheel(python, mmcv, tag, args.stack)
        pip(python, 'install', '--no-deps', '--force-reinstall', str(wheel))
        remove_kernels(suffix)
        install_package(python, args.stack, args.lock)
    elif done[2:] != [kernels_digest(suffix)]:
        say('building the CPU kernels, whose sources have changed')
        remove_kernels(suffix)
        pip(python, 'install', '--no-build-isolation', '--no-deps', '-e', str(ROOT))
    else:
        return
    if output_of(python, 'import mmcv.ops') is None:
        sys.exit(f'setup: mmcv does not import; remove {CACHE} and try again')
    if not built_kernels(suffix):
        say('no CPU kernels: they did not compile, and torch does their work')
    stamp.write_text(f'{packages} {tag} {kernels_digest(suffix)}')
    say('done')


if __name__ == '__main__':
    main()
