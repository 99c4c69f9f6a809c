"""The choice of a backend."""

import pytest

from pelk_mm.ops import cpu, selection


@pytest.fixture(params=[*cpu.instruction_sets(), 'none'])
def version(request, monkeypatch):
    monkeypatch.delenv(selection.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv(cpu.ENVIRONMENT_VARIABLE, request.param)
    return request.param


@pytest.mark.parametrize('work', ['convolve', 'weight_grad'])
def test_something_available_is_chosen(version, work):
    for size in (1, 7, 56, 128):
        for kernel in ((1, 1), (5, 51), (51, 51)):
            chosen = selection.choose(None, work, (2, 8, size, size), kernel)
            assert chosen in selection.BACKENDS
            assert chosen != 'direct' or version != 'none'


def test_large_dense_kernels_go_by_fourier_transform(version):
    for work in ('convolve', 'weight_grad'):
        assert selection.choose(None, work, (2, 64, 256, 256), (201, 201)) == 'fft'


@pytest.mark.parametrize(
    ('instruction_set', 'shape', 'kernel'),
    [
        ('avx2', (1, 32, 128, 128), (51, 5)),
        ('avx2', (1, 32, 64, 64), (49, 5)),
        ('portable', (1, 32, 128, 128), (51, 5)),
        ('portable', (1, 32, 64, 64), (49, 5)),
        ('portable', (1, 32, 32, 32), (27, 27)),
    ],
)
def test_narrower_vectors_leave_these_to_torch(
    monkeypatch, instruction_set, shape, kernel
):
    """Timed forward, channels_last was ahead of both direct and the FFT."""
    monkeypatch.delenv(selection.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(cpu, 'instruction_set', lambda: instruction_set)
    chosen = selection.choose(None, 'convolve', shape, kernel)
    assert chosen in ('channels_last', 'nchw')
    monkeypatch.setattr(cpu, 'instruction_set', lambda: 'avx512')
    assert selection.choose(None, 'convolve', shape, kernel) == 'direct'


@pytest.mark.parametrize('shape', [(1, 32, 128, 128), (2, 64, 16, 16)])
def test_small_kernels_stay_with_every_version(version, shape):
    chosen = selection.choose(None, 'weight_grad', shape, (5, 5))
    assert (chosen == 'direct') == (version != 'none')


def test_argument_then_environment_then_model(monkeypatch):
    shape, kernel = (1, 8, 16, 16), (5, 5)
    monkeypatch.setenv(selection.ENVIRONMENT_VARIABLE, 'fft')
    assert selection.choose(None, 'convolve', shape, kernel) == 'fft'
    assert selection.choose('nchw', 'convolve', shape, kernel) == 'nchw'
    monkeypatch.setenv(selection.ENVIRONMENT_VARIABLE, 'magic')
    with pytest.raises(ValueError, match="no convolution backend 'magic'"):
        selection.choose(None, 'convolve', shape, kernel)


def test_direct_without_kernels_is_refused(monkeypatch):
    monkeypatch.setenv(cpu.ENVIRONMENT_VARIABLE, 'none')
    with pytest.raises(ValueError, match="'direct' needs the compiled kernels"):
        selection.check('direct')
