"""The choice of a backend."""

import pytest

from pelk_mm.ops import cpu, selection


@pytest.fixture(params=[*cpu.instruction_sets(), 'none'])
def version(request, monkeypatch):
    monkeypatch.delenv(selection.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv(cpu.ENVIRONMENT_VARIABLE, request.param)
    return request.param


@pytest.mark.parametrize('work', ['convolve', 'weight_grad'])
@pytest.mark.parametrize('sharing_grid', [None, [3, 2, 1, 2, 3]])
def test_something_available_is_chosen(version, work, sharing_grid):
    kernels = [(11, 11)] if sharing_grid else [(1, 1), (5, 51), (51, 51)]
    for size in (1, 7, 56, 128):
        for kernel in kernels:
            shape = (2, 8, size, size)
            chosen = selection.choose(None, work, shape, kernel, sharing_grid)
            assert chosen in selection.BACKENDS
            assert chosen not in selection.COMPILED or version != 'none'


@pytest.mark.parametrize('work', ['convolve', 'weight_grad'])
def test_large_dense_kernels_go_by_fourier_transform(version, work):
    expected = 'torch_fft' if version == 'none' else 'fft'
    for shape, kernel in (
        ((2, 64, 256, 256), (201, 201)),
        ((2, 64, 64, 64), (31, 31)),
        ((2, 64, 128, 128), (51, 51)),
    ):
        assert selection.choose(None, work, shape, kernel) == expected


@pytest.mark.parametrize('work', ['convolve', 'weight_grad'])
def test_small_kernels_go_by_direct_sums(version, work):
    for shape in ((1, 32, 128, 128), (2, 64, 32, 32)):
        chosen = selection.choose(None, work, shape, (3, 3))
        assert (chosen == 'direct') == (version != 'none')


def test_expected_time_grows_with_the_work(version):
    """Whatever the backend: a wrong sign in the table would show here."""
    instruction_set = cpu.instruction_set()
    for work in ('convolve', 'weight_grad'):
        for kernel in ((5, 5), (13, 13), (31, 31), (5, 51)):
            before = {}
            for size in (32, 64, 128, 256):
                shape = (2, 32, size, size)
                expected = selection._candidates(
                    work, shape, kernel, None, instruction_set
                )
                for backend, (call, plane) in expected.items():
                    assert call > 0
                    assert before.get(backend, 0) < plane
                before = {b: plane for b, (_, plane) in expected.items()}


def test_small_maps_are_left_to_torch(version):
    for gradients in (False, True):
        large = selection.leave_to_torch((2, 128, 64, 64), (31, 31), gradients, 2)
        assert not large
    assert selection.leave_to_torch((2, 64, 14, 14), (5, 5), False, 2)


def test_nothing_is_left_to_torch_against_a_wish(monkeypatch):
    monkeypatch.setattr(selection, '_leave_to_torch', lambda *_: True)
    monkeypatch.delenv(selection.ENVIRONMENT_VARIABLE, raising=False)
    assert selection.leave_to_torch((1, 4, 7, 7), (5, 5), False, 2)
    assert not selection.leave_to_torch((0, 4, 7, 7), (5, 5), False, 2)
    monkeypatch.setenv(selection.ENVIRONMENT_VARIABLE, 'direct')
    assert not selection.leave_to_torch((1, 4, 7, 7), (5, 5), False, 2)


def test_argument_then_environment_then_model(monkeypatch):
    shape, kernel = (1, 8, 16, 16), (5, 5)
    monkeypatch.setenv(selection.ENVIRONMENT_VARIABLE, 'torch_fft')
    assert selection.choose(None, 'convolve', shape, kernel) == 'torch_fft'
    assert selection.choose('nchw', 'convolve', shape, kernel) == 'nchw'
    monkeypatch.setenv(selection.ENVIRONMENT_VARIABLE, 'magic')
    with pytest.raises(ValueError, match="no convolution backend 'magic'"):
        selection.choose(None, 'convolve', shape, kernel)


@pytest.mark.parametrize('backend', selection.COMPILED)
def test_compiled_without_kernels_is_refused(monkeypatch, backend):
    monkeypatch.setenv(cpu.ENVIRONMENT_VARIABLE, 'none')
    with pytest.raises(ValueError, match=f"'{backend}' needs the compiled kernels"):
        selection.check(backend)
