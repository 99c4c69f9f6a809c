"""The compiled library: found, checked, refused with the remedy."""

import ctypes
import shutil
import subprocess

import pytest
import torch

from pelk_mm.ops.backends.cpu import kernels, library

pytestmark = pytest.mark.skipif(
    not library.instruction_sets(), reason='the kernels are not built'
)


def test_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv(library.ENVIRONMENT_VARIABLE, 'sse9')
    with pytest.raises(ValueError, match='PELK_MM_ISA=sse9.*choose one'):
        library.instruction_set()


def test_missing_library_warns_once(monkeypatch):
    monkeypatch.setattr(library.importlib.machinery, 'EXTENSION_SUFFIXES', [])
    with pytest.warns(RuntimeWarning, match='without its compiled CPU kernels'):
        assert library.load.__wrapped__() is None


def test_calls_without_the_kernels_say_so(monkeypatch):
    monkeypatch.setenv(library.ENVIRONMENT_VARIABLE, 'none')
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(RuntimeError, match='PELK_MM_ISA=none; choose another backend'):
        kernels.convolve(x, torch.ones(1, 1, 1), None)
    monkeypatch.setattr(library, 'load', lambda: None)
    with pytest.raises(RuntimeError, match='kernels are missing; install a C'):
        library.call('pelk_convolve')


JOB_BYTES = ctypes.sizeof(library.Job)
STALE_LIBRARIES = [
    ('interface is none', 'int pelk_version_supported(int i) { return i; }'),
    *(
        (
            f'interface is {abi} ({size} bytes per job)',
            f'int pelk_abi() {{ return {abi}; }} '
            f'int pelk_job_bytes() {{ return {size}; }}',
        )
        for abi, size in ((1, JOB_BYTES), (library.ABI, 8))
    ),
]


@pytest.mark.parametrize(('message', 'source'), STALE_LIBRARIES)
def test_stale_library_is_refused(tmp_path, monkeypatch, message, source):
    compiler = shutil.which('cc') or shutil.which('gcc') or shutil.which('clang')
    if compiler is None:
        pytest.skip('no C compiler')
    (tmp_path / 'stale.c').write_text(source)
    subprocess.run(
        [compiler, '-shared', '-fPIC', '-o', '_kernels.so', 'stale.c'],
        cwd=tmp_path,
        check=True,
    )
    monkeypatch.setattr(library, '__file__', str(tmp_path / 'library.py'))
    monkeypatch.setattr(library.importlib.machinery, 'EXTENSION_SUFFIXES', ['.so'])
    with pytest.raises(RuntimeError, match='another version') as raised:
        library.load.__wrapped__()
    text = str(raised.value)
    assert message in text
    assert str(tmp_path / '_kernels.so') in text
    assert f'needed is {library.ABI} ({JOB_BYTES} bytes per job)' in text
    assert '`pip install --no-build-isolation -e .`' in text
