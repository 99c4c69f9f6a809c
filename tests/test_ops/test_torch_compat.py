"""Private functions of torch, and how calls fare without them."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pelk_mm import ops
from pelk_mm.ops import _torch_compat

#: What the module takes from torch; the rest with such names is its own.
FOUND = [
    name
    for name, value in vars(_torch_compat).items()
    if name.startswith('_')
    and not name.startswith('__')
    and getattr(value, '__module__', None) != _torch_compat.__name__
]


def call():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 3, 3)
    return ops.depthwise_conv2d(x, weight)


@pytest.mark.parametrize('name', FOUND)
def test_this_torch_has_all_of_them(name):
    assert len(FOUND) == 10
    assert getattr(_torch_compat, name) is not None
    assert hasattr(torch.autograd.forward_ad, '_current_level')


@pytest.mark.skipif(sys.platform != 'linux', reason='torch has another OpenMP there')
def test_threads_can_be_borrowed(monkeypatch):
    assert _torch_compat.openmp_entry()
    monkeypatch.setattr(torch._C, '__file__', '/no/such/library.so')
    assert _torch_compat.openmp_entry.__wrapped__() is None


class Runtime:
    """An OpenMP runtime of a process in which torch runs on one of two."""

    #: Threads that each has been told to use.
    threads = None

    def __init__(self, entry):
        self.entry = entry

    @property
    def GOMP_parallel(self):  # noqa: N802
        if self.entry is None:
            raise AttributeError('undefined symbol: GOMP_parallel')
        return ctypes.c_void_p(self.entry)

    def omp_get_max_threads(self):
        return self.threads[self.entry]

    def omp_set_num_threads(self, number):
        self.threads[self.entry] = number


@pytest.mark.parametrize('threads', [1, 2, 8])
@pytest.mark.parametrize(
    ('brought', 'shared', 'used', 'entry'),
    [
        (16, 16, 16, 16),  # the usual process: there is one
        (16, 32, 32, 32),  # another one preloaded, or loaded for all before torch
        (16, 32, 16, 16),  # another one loaded for all after torch
        (16, None, 16, 16),  # torch keeps its own to itself
        (None, 32, None, None),  # torch has none, another library has
        (None, None, None, None),
    ],
)
def test_the_runtime_that_torch_runs_on(
    monkeypatch, threads, brought, shared, used, entry
):
    told = {16: threads, 32: 5}
    told[used] = threads
    before = dict(told)
    libraries = {torch._C.__file__: Runtime(brought), None: Runtime(shared)}
    monkeypatch.setattr(Runtime, 'threads', told)
    monkeypatch.setattr(ctypes, 'CDLL', libraries.__getitem__)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: told[used])
    assert _torch_compat.openmp_entry.__wrapped__() == entry
    assert told == before


#: Prints whether the entry is the other runtime's, and whether it is what torch brings.
SCRIPT = """
import ctypes, runpy, sys
import torch
openmp_entry = runpy.run_path(sys.argv[2])["openmp_entry"]

def address(library):
    return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value

threads = torch.get_num_threads()
own = ctypes.CDLL(torch._C.__file__)
for mode in (ctypes.RTLD_LOCAL, ctypes.RTLD_GLOBAL):
    other = ctypes.CDLL(sys.argv[1], mode=mode)
    entry = openmp_entry.__wrapped__()
    print(entry == address(other), entry == address(own))
assert torch.get_num_threads() == threads
"""

#: What of a runtime torch asks for as long as it computes nothing.
SOURCE = """
static int threads = 3;
void GOMP_parallel(void (*work)(void *), void *data, unsigned n, unsigned flags) {
  work(data);
}
int omp_get_max_threads(void) { return threads; }
void omp_set_num_threads(int number) { threads = number; }
"""


@pytest.fixture(scope='module')
def other_runtime(tmp_path_factory):
    """Intel's OpenMP runtime, as tuning guides preload it, or what stands for one."""
    for path in Path(sys.prefix, 'lib').glob('libiomp5.so'):
        return path
    compiler = shutil.which('cc') or shutil.which('gcc') or shutil.which('clang')
    if compiler is None:
        pytest.skip('neither libiomp5.so (pip install intel-openmp) nor a C compiler')
    folder = tmp_path_factory.mktemp('runtime')
    (folder / 'runtime.c').write_text(SOURCE)
    subprocess.run(
        [compiler, '-shared', '-fPIC', '-o', 'libother.so', 'runtime.c'],
        cwd=folder,
        check=True,
    )
    return folder / 'libother.so'


@pytest.mark.skipif(sys.platform != 'linux', reason='torch has another OpenMP there')
@pytest.mark.parametrize('preloaded', [True, False])
def test_torch_runs_on_a_runtime_only_if_it_was_there_first(other_runtime, preloaded):
    run = subprocess.run(
        [sys.executable, '-c', SCRIPT, other_runtime, _torch_compat.__file__],
        env=os.environ | (dict(LD_PRELOAD=str(other_runtime)) if preloaded else {}),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(preloaded), str(not preloaded)] * 2


def test_nothing_is_watched_by_default():
    assert not _torch_compat.is_watched()
    assert not _torch_compat.in_forward_mode()


@pytest.mark.parametrize(
    'name',
    [n for n in FOUND if not any(m in n for m in ('_forward_mode', 'onednn', 'hooks'))],
)
def test_without_one_of_them_calls_go_through_the_dispatcher(monkeypatch, name):
    expected = call()
    monkeypatch.setattr(_torch_compat, name, None)
    assert _torch_compat.is_watched()
    torch.manual_seed(0)
    assert torch.equal(call(), expected)


@pytest.mark.parametrize('name', [n for n in FOUND if 'hooks' in n])
def test_without_one_of_them_hooks_are_taken_to_be_there(monkeypatch, name):
    assert not _torch_compat.has_global_hooks()
    monkeypatch.setattr(_torch_compat, name, None)
    assert _torch_compat.has_global_hooks()


def test_without_its_level_forward_mode_is_taken_to_be_on(monkeypatch):
    monkeypatch.setattr(_torch_compat, '_forward_mode', None)
    assert _torch_compat.in_forward_mode()
    call()


@pytest.mark.parametrize('base', [TorchFunctionMode, TorchDispatchMode])
@pytest.mark.parametrize('operator', ['depthwise_conv2d', 'peripheral_conv2d'])
def test_modes_see_the_operators(base, operator):
    """Also the gradients, which a dispatch mode sees."""
    seen = []

    class Watch(base):
        def _note(self, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            return function(*arguments, **(keywords or {}))

        __torch_function__ = __torch_dispatch__ = _note

    x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 3, 3, requires_grad=True)
    arguments = (x, weight) if operator.startswith('depth') else (x, weight, (1, 3, 1))
    with Watch():
        getattr(ops, operator)(*arguments).sum().backward()
    assert any(f'pelk_mm.{operator}' in name for name in seen)
    if base is TorchDispatchMode:
        assert any(f'pelk_mm.{operator}_backward' in name for name in seen)
