"""The choice of a backend."""

import pytest

from pelk_mm.ops import selection
from pelk_mm.ops.backends.cpu import library as cpu


@pytest.fixture(params=[*cpu.instruction_sets(), 'none'])
def version(request, monkeypatch):
    monkeypatch.delenv(selection.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv(cpu.ENVIRONMENT_VARIABLE, request.param)
    return request.param


@pytest.fixture(params=selection.PASSES)
def passes(request):
    return request.param


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('sharing_grid', [None, [3, 2, 1, 2, 3]])
def test_something_available_is_chosen(version, passes, sharing_grid, channels_last):
    kernels = [(11, 11)] if sharing_grid else [(1, 1), (5, 51), (51, 51)]
    for size in (1, 7, 56, 128):
        for kernel in kernels:
            shape = (2, 8, size, size)
            chosen = selection.choose(
                None, passes, shape, kernel, sharing_grid, channels_last
            )
            assert len(chosen) == len(selection.PASSES[passes])
            for backend in chosen:
                assert backend in selection.BACKENDS
                assert (backend in selection.COMPILED) == (version != 'none')


def test_large_dense_kernels_go_by_fourier_transform(version, passes):
    for shape, kernel in (
        ((2, 64, 256, 256), (201, 201)),
        ((2, 64, 64, 64), (31, 31)),
        ((2, 64, 128, 128), (51, 51)),
    ):
        expected = ('torch_fft',) if version == 'none' else selection.FOURIER
        for backend in selection.choose(None, passes, shape, kernel):
            assert backend in expected


def test_small_kernels_go_by_sums(version, passes):
    if version == 'none':
        pytest.skip('only the compiled kernels have a choice of sums')
    shape = (2, 64, 64, 64)
    chosen = selection.choose(None, passes, shape, (3, 3))
    assert set(chosen) <= {'direct', 'pixels'}
    chosen = selection.choose(None, passes, shape, (3, 3), None, True)
    assert set(chosen) == {'pixels'}
    chosen = selection.choose(None, passes, (2, 64, 14, 14), (5, 5))
    assert set(chosen) <= {'direct', 'pixels'}


def test_expected_time_grows_with_the_work(version, passes):
    """Whatever the backend: a wrong sign in the table would show here."""
    instruction_set = cpu.instruction_set()
    for kernel in ((5, 5), (13, 13), (31, 31), (5, 51)):
        before = {}
        for size in (32, 64, 128, 256):
            expected = selection._options(
                passes, (2, 32, size, size), kernel, None, False, instruction_set
            )
            for backends, (call, plane) in expected.items():
                assert call > 0
                assert before.get(backends, 0) < plane
            before = {b: plane for b, (_, plane) in expected.items()}


@pytest.mark.skipif(not cpu.instruction_sets(), reason='the kernels are not built')
def test_a_change_of_layout_is_paid_for(monkeypatch):
    monkeypatch.delenv(cpu.ENVIRONMENT_VARIABLE, raising=False)
    problem = (2, 32, 64, 64), (5, 5), None
    planes, pixels = (
        selection._options('both', *problem, channels_last, cpu.instruction_set())
        for channels_last in (False, True)
    )
    for backends in planes:
        if 'pixels' not in backends:
            assert pixels[backends][1] > planes[backends][1]


def test_argument_then_environment_then_model(monkeypatch):
    shape, kernel = (1, 8, 16, 16), (5, 5)
    monkeypatch.setenv(selection.ENVIRONMENT_VARIABLE, 'torch_fft')
    assert selection.choose(None, 'forward', shape, kernel) == ('torch_fft',)
    assert selection.choose('nchw', 'both', shape, kernel) == ('nchw', 'nchw')
    monkeypatch.setenv(selection.ENVIRONMENT_VARIABLE, 'magic')
    with pytest.raises(
        ValueError, match="PELK_MM_CONV=magic: .*no convolution backend 'magic'"
    ):
        selection.choose(None, 'forward', shape, kernel)


@pytest.mark.parametrize('backend', selection.COMPILED)
def test_compiled_without_kernels_is_refused(monkeypatch, backend):
    monkeypatch.setenv(cpu.ENVIRONMENT_VARIABLE, 'none')
    with pytest.raises(ValueError, match=f"'{backend}' needs the compiled kernels"):
        selection.check(backend)
