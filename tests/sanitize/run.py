"""Build the CPU kernels with sanitizers and drive all of them: `make sanitize`.

The kernels are built by setup.py, for every instruction set, into a temporary folder
and driven by `check_kernels.cpp`, a program without an interpreter in it.

    python tests/sanitize/run.py                 all sanitizers
    python tests/sanitize/run.py thread          one of them
    python tests/sanitize/run.py --cases 1000    more problems of random shapes
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / 'pelk_mm' / 'ops' / 'csrc'
DRIVER = Path(__file__).with_name('check_kernels.cpp')

#: Flags by sanitizer. One at a time and without optimisation, which could leave out
#: what is to be found: otherwise the transforms take minutes to compile. The thread
#: sanitizer follows every access with a call, of which optimisation leaves fewer.
SANITIZERS = {
    'address': [
        '-O0',
        '-fsanitize=address',
        # A call for every access instead of code.
        '--param=asan-instrumentation-with-call-threshold=0',
    ],
    # Ends the program, as the others do, instead of printing alone.
    'undefined': ['-O0', '-fsanitize=undefined', '-fno-sanitize-recover=undefined'],
    'thread': ['-O1', '-fsanitize=thread'],
}
#: Lines of source in reports.
COMMON = ['-g1', '-fno-omit-frame-pointer']
#: What the programs are run with.
OPTIONS = {
    # check_kernels.cpp asks for more memory than there is, which the library reports.
    # New memory is filled with NaNs, so that a result shows what was read before it was
    # written.
    'ASAN_OPTIONS': 'allocator_may_return_null=1:detect_stack_use_after_return=1:'
    'detect_leaks=1:malloc_fill_byte=255:max_malloc_fill_size=1073741824',
    'UBSAN_OPTIONS': 'print_stacktrace=1',
    'TSAN_OPTIONS': 'allocator_may_return_null=1:second_deadlock_stack=1',
}


#: What is said of memory that check_kernels.cpp asks for because there is not as much.
_ASKED_FOR = re.compile(r'WARNING: \w+ failed to allocate 0x[0-9a-f]{12,} bytes$')


class FailedError(Exception):
    """A build or a run failed; the message says which."""


def find_compiler() -> str | None:
    """The C++ compiler of the environment, or the system's."""
    return os.environ.get('CXX') or shutil.which('g++') or shutil.which('c++')


def build_library(folder: Path, flags: list[str]) -> Path:
    """Build the kernels as setup.py does.

    Args:
        folder: Where to build.
        flags: More flags for the compiler and the linker.

    Returns:
        The library.

    Raises:
        FailedError: It could not be built.
    """
    done = subprocess.run(
        [sys.executable, 'setup.py', '--quiet', 'build_ext']
        + [f'--build-lib={folder / "lib"}', f'--build-temp={folder / "objects"}'],
        cwd=ROOT,
        env={**os.environ, 'PELK_MM_CXXFLAGS': ' '.join(flags)},
        capture_output=True,
        text=True,
    )
    # setup.py goes on without the kernels where they cannot be built.
    built = sorted((folder / 'lib').rglob('_kernels*'))
    if not built:
        raise FailedError(f'the kernels were not built:\n{done.stdout}{done.stderr}')
    return built[0]


def build_driver(library: Path, folder: Path, flags: list[str]) -> Path:
    """Compile the program that drives a library.

    Args:
        library: The library.
        folder: Where to put the program.
        flags: The flags with which the library was built.

    Returns:
        The program.

    Raises:
        FailedError: It could not be compiled, or there is no compiler.
    """
    compiler = find_compiler()
    if compiler is None:
        raise FailedError('there is no C++ compiler; install g++ or set CXX')
    program = folder / 'check_kernels'
    done = subprocess.run(
        [compiler, '-std=c++17', '-Wall', '-Wextra', '-Werror', *flags, f'-I{CSRC}']
        + [str(DRIVER), str(library), f'-Wl,-rpath,{library.parent}', '-pthread']
        + ['-o', str(program)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise FailedError(f'{DRIVER.name} was not compiled:\n{done.stderr}')
    return program


def drive(program: Path, *arguments: int) -> str:
    """Run a program.

    Args:
        program: What `build_driver` made, or another one.
        arguments: What it takes: the seed of the problems of random shapes, and how
            many of them.

    Returns:
        What it says of itself.

    Raises:
        FailedError: A result was wrong, or a sanitizer has reported something.
    """
    done = subprocess.run(
        [str(program), *map(str, arguments)],
        env={**os.environ, **OPTIONS},
        capture_output=True,
        text=True,
    )
    reports = [line for line in done.stderr.splitlines() if not _ASKED_FOR.search(line)]
    if done.returncode or reports:
        raise FailedError(
            f'exit status {done.returncode}:\n{done.stdout}' + '\n'.join(reports[-300:])
        )
    return done.stdout.strip()


def check(name: str, seed: int, cases: int) -> str:
    """Build with a sanitizer and run; returns the program's line."""
    flags = [*COMMON, *SANITIZERS[name]]
    with tempfile.TemporaryDirectory(prefix='pelk_mm_') as temporary:
        folder = Path(temporary)
        program = build_driver(build_library(folder, flags), folder, flags)
        return drive(program, seed, cases)


def main() -> None:
    """Run the sanitizers asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'sanitizers',
        nargs='*',
        metavar='SANITIZER',
        help=f'of {", ".join(SANITIZERS)} (default: all)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of the random shapes')
    parser.add_argument(
        '--cases', type=int, default=300, help='random shapes (default: %(default)s)'
    )
    args = parser.parse_args()
    unknown = set(args.sanitizers) - SANITIZERS.keys()
    if unknown:
        parser.error(
            f'unknown: {", ".join(unknown)}; choose of {", ".join(SANITIZERS)}'
        )
    names = args.sanitizers or list(SANITIZERS)
    start = time.monotonic()
    failed = False
    with ThreadPoolExecutor() as pool:
        runs = {name: pool.submit(check, name, args.seed, args.cases) for name in names}
        for name, run in runs.items():
            try:
                print(f'{name}: clean: {run.result()}', flush=True)
            except FailedError as error:
                failed = True
                print(f'{name}: {error}', file=sys.stderr, flush=True)
    print(f'{time.monotonic() - start:.0f} s')
    sys.exit(failed)


if __name__ == '__main__':
    main()
