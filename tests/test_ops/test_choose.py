"""The choice of a backend."""

import pytest
import torch

from pelk_mm.ops import choose
from pelk_mm.ops.backends import cpu
from pelk_mm.ops.backends.cpu import library
from pelk_mm.ops.problem import Problem

COMPILED = [backend.name for backend in cpu.BACKENDS]
FOURIER = ('fft', 'column_fft')
PASSES = (('forward',), ('input',), ('weight',), ('input', 'weight'))


@pytest.fixture(params=[*cpu.instruction_sets(), 'none'])
def version(request, monkeypatch):
    monkeypatch.delenv(choose.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv(library.ENVIRONMENT_VARIABLE, request.param)
    return request.param


@pytest.fixture(params=PASSES, ids='+'.join)
def passes(request):
    return request.param


def chosen(passes, *problem, name=None, **settings):
    option = choose.choose(Problem(*problem, **settings), passes, name)
    return tuple(backend.name for backend in option)


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('grid', [None, (3, 2, 1, 2, 3)])
def test_something_available_is_chosen(version, passes, grid, channels_last):
    kernels = [(11, 11)] if grid else [(1, 1), (5, 51), (51, 51)]
    for size in (1, 7, 56, 128):
        for kernel in kernels:
            option = chosen(
                passes, (2, 8, size, size), kernel, grid, channels_last=channels_last
            )
            assert len(option) == len(passes)
            for backend in option:
                assert backend in choose.BACKENDS
                assert (backend in COMPILED) == (version != 'none')


def test_large_dense_kernels_go_by_fourier_transform(version, passes):
    for shape, kernel in (
        ((2, 64, 256, 256), (201, 201)),
        ((2, 64, 64, 64), (31, 31)),
        ((2, 64, 128, 128), (51, 51)),
    ):
        expected = ('torch_fft',) if version == 'none' else FOURIER
        for backend in chosen(passes, shape, kernel):
            assert backend in expected


def test_small_kernels_go_by_sums(version, passes):
    if version == 'none':
        pytest.skip('only the compiled kernels have a choice of sums')
    shape = (2, 64, 64, 64)
    assert set(chosen(passes, shape, (3, 3))) <= {'direct', 'pixels'}
    option = chosen(passes, shape, (3, 3), channels_last=True)
    assert set(option) == {'pixels'}
    assert set(chosen(passes, (2, 64, 14, 14), (5, 5))) <= {'direct', 'pixels'}


@pytest.mark.skipif(not cpu.instruction_sets(), reason='the kernels are not built')
def test_a_change_of_layout_is_paid_for(monkeypatch):
    monkeypatch.delenv(library.ENVIRONMENT_VARIABLE, raising=False)
    planes = Problem((2, 32, 64, 64), (5, 5))
    for name in COMPILED:
        if name != 'pixels':
            costs = [
                choose.BACKENDS[name].cost(problem, ('input', 'weight'))
                for problem in (planes, planes._replace(channels_last=True))
            ]
            assert costs[1] > costs[0]


@pytest.mark.skipif(not cpu.instruction_sets(), reason='the kernels are not built')
def test_transforms_of_both_gradients_are_shared(monkeypatch):
    monkeypatch.delenv(library.ENVIRONMENT_VARIABLE, raising=False)
    problem = Problem((2, 32, 64, 64), (31, 31))
    for name in FOURIER:
        backend = choose.BACKENDS[name]
        apart = sum(backend.cost(problem, (each,)) for each in ('input', 'weight'))
        assert backend.cost(problem, ('input', 'weight')) < apart


def test_argument_then_environment_then_model(monkeypatch):
    problem = (1, 8, 16, 16), (5, 5)
    monkeypatch.setenv(choose.ENVIRONMENT_VARIABLE, 'torch_fft')
    assert chosen(('forward',), *problem) == ('torch_fft',)
    both = chosen(('input', 'weight'), *problem, name='nchw')
    assert both == ('nchw', 'nchw')
    monkeypatch.setenv(choose.ENVIRONMENT_VARIABLE, 'magic')
    with pytest.raises(
        ValueError, match="PELK_MM_CONV=magic: .*no convolution backend 'magic'"
    ):
        chosen(('forward',), *problem)


@pytest.mark.parametrize('name', COMPILED)
def test_compiled_without_kernels_is_refused(monkeypatch, name):
    monkeypatch.setenv(library.ENVIRONMENT_VARIABLE, 'none')
    with pytest.raises(ValueError, match=f"'{name}' .* it needs the compiled kernels"):
        chosen(('forward',), (1, 8, 16, 16), (5, 5), name=name)


@pytest.mark.parametrize('name', COMPILED)
@pytest.mark.parametrize('insist', ['argument', 'variable'])
def test_another_device_is_refused(monkeypatch, name, insist):
    """A problem on a GPU, which nobody needs to have to ask."""
    problem = Problem((1, 8, 16, 16), (5, 5), device='cuda')
    if insist == 'variable':
        monkeypatch.setenv(choose.ENVIRONMENT_VARIABLE, name)
    with pytest.raises(ValueError, match='because it runs on the CPU and x is on cuda'):
        choose.choose(problem, PASSES[0], name if insist == 'argument' else None)


def test_where_nothing_was_measured_torch_channels_last_serves():
    for settings in (dict(device='cuda'), dict(dtype=torch.float64)):
        for passes in PASSES:
            option = chosen(passes, (2, 64, 64, 64), (31, 31), **settings)
            assert set(option) == {'channels_last'}
