"""The program that drives the kernels under sanitizers, and what those find."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

from pelk_mm.ops.backends.cpu import library

FOLDER = Path(__file__).resolve().parents[1] / 'sanitize'


@pytest.fixture(scope='module')
def run():
    """The script behind `make sanitize`."""
    spec = importlib.util.spec_from_file_location('run_sanitizers', FOLDER / 'run.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.find_compiler() is None:
        pytest.skip('no C++ compiler')
    return module


@pytest.mark.long
@pytest.mark.skipif(not library.instruction_sets(), reason='the kernels are not built')
def test_the_kernels_as_they_are_installed_pass(run, tmp_path):
    kernels = Path(library.load()._name)
    program = run.build_driver(kernels, tmp_path, ['-O1'])
    assert '20 random problems' in (said := run.drive(program, 7, 20))
    assert all(f' {name}' in said for name in library.instruction_sets())
    assert '0 failures' in said


#: A piece of scratch memory that is left by one element.
BEYOND = """
#include <cstdio>
#include "scratch.h"
#include "simd.h"
int main(int count, char**) {
  using namespace pelk::PELK_ISA;
  const int64_t size = 3 + 10 * (count - 1);
  Arena sizes = {nullptr, 0};
  sizes.take<float>(3);
  sizes.take<float>(3);
  Arena arena = {pelk::Scratch::get(sizes.used), 0};
  float* first = arena.take<float>(3);
  arena.take<float>(3);
  for (int64_t i = 0; i < size; ++i) first[i] = 1.0f;
  std::puts("done");
}
"""


def test_guards_between_pieces_of_scratch_memory_are_seen(run, tmp_path):
    (tmp_path / 'beyond.cpp').write_text(BEYOND)
    macros = ['-DPELK_ISA=portable', '-DPELK_LANES=4', '-DPELK_REGISTERS=16']
    command = [run.find_compiler(), '-std=c++17', *macros, f'-I{run.CSRC}']
    command += [*run.SANITIZERS['address'], 'beyond.cpp', '-o', 'beyond']
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if built.returncode and 'asan' in built.stderr:
        pytest.skip('the compiler has no AddressSanitizer')
    assert built.returncode == 0, built.stderr
    program = str(tmp_path / 'beyond')
    assert run.drive(program) == 'done'
    with pytest.raises(run.FailedError, match='use-after-poison'):
        run.drive(program, 1)


@pytest.mark.slow
@pytest.mark.parametrize('sanitizer', ['address', 'undefined', 'thread'])
def test_sanitizers_find_nothing(run, sanitizer):
    assert '0 failures' in run.check(sanitizer, seed=1, cases=100)
