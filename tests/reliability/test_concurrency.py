"""One model in many threads, and the kernels in forked and spawned processes."""

import importlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from torch.utils.data import DataLoader

from pelk_mm.ops.backends.cpu import library

SIZES = dict(channels=[8, 16], depths=[1, 2], kernel_sizes=[31, 13])
BACKBONES = {
    'PeLK': dict(SIZES, central_radius=2),
    'SLaK': SIZES,
    'RepLKNet': SIZES,
}
CALLERS = 8
METHODS = ['direct', 'pixels', 'fft', 'column_fft']

needs_kernels = pytest.mark.skipif(
    not library.instruction_sets(), reason='the kernels are not built'
)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_model(randomise):
    """Builds a narrow backbone for inference."""

    def make(kind, deployed):
        model = MODELS.build(
            dict(type=kind, arch=BACKBONES[kind], out_indices=(0, 1))
        ).eval()
        randomise(model)
        if deployed:
            model.switch_to_deploy()
        return model

    return make


@torch.no_grad()
def infer(model, images):
    return [maps for image in images for maps in model(image)]


@pytest.mark.parametrize('deployed', [False, True], ids=['plain', 'deployed'])
@pytest.mark.parametrize('kind', BACKBONES)
def test_threads_that_share_a_model_get_the_bits_of_one(
    two_threads, make_model, kind, deployed
):
    model = make_model(kind, deployed)
    # Of several sizes, so that the callers are at different convolutions.
    images = [torch.randn(1, 3, side, 64) for side in (40, 64, 33, 80)]
    expected = infer(model, images)
    start = threading.Barrier(CALLERS)

    def call(number):
        start.wait(30)
        order = [*range(number % 4, 4), *range(number % 4)]
        found = [infer(model, [images[i]]) for i in order for _ in range(2)]
        return order, found[::2] + found[1::2], torch.get_num_threads()

    with ThreadPoolExecutor(CALLERS) as pool:
        results = list(pool.map(call, range(CALLERS)))
    for order, found, threads in results:
        assert threads == 2
        wanted = [expected[2 * i : 2 * i + 2] for i in order] * 2
        for maps, right in zip(found, wanted, strict=True):
            assert all(map(torch.equal, maps, right))


@pytest.fixture
def convolved(monkeypatch):
    """The data set, of a module that other processes can import."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module('worker_data').Convolved


def load_here(dataset):
    return [dataset[i] for i in range(len(dataset))]


def load_all(dataset, context, workers=2):
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        timeout=120,
    )
    return list(loader)


@needs_kernels
@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize('backend', METHODS)
def test_forked_data_workers_give_the_same_bits(
    two_threads, convolved, backend, threads
):
    # The parent's threads are up before the fork.
    expected = load_here(convolved(backend, 2))
    found = load_all(convolved(backend, threads), 'fork')
    assert all(map(torch.equal, found, expected))
    # And they are unharmed.
    assert all(map(torch.equal, load_here(convolved(backend, 2)), expected))


@pytest.mark.slow  # a new interpreter imports torch
@needs_kernels
def test_spawned_data_workers_give_the_same_bits(two_threads, convolved):
    expected = load_here(convolved('column_fft', 2))
    found = load_all(convolved('column_fft', 2), 'spawn', workers=1)
    assert all(map(torch.equal, found, expected))


@needs_kernels
def test_a_fork_of_a_fork_gives_the_same_bits(two_threads, kills, convolved):
    expected = {backend: load_here(convolved(backend, 2)) for backend in METHODS}

    def check():
        for backend, maps in expected.items():
            found = load_here(convolved(backend, 3))
            assert all(map(torch.equal, found, maps))

    def check_and_fork():
        check()
        assert kills.run_forked(check) == 0

    assert kills.run_forked(check_and_fork) == 0


@needs_kernels
def test_forks_while_other_threads_compute(two_threads, kills, convolved):
    expected = {backend: load_here(convolved(backend, 2)) for backend in METHODS}
    done = threading.Event()

    def compute(backend):
        rounds = 0
        while not done.is_set():
            found = load_here(convolved(backend, 2))
            assert all(map(torch.equal, found, expected[backend]))
            rounds += 1
        return rounds

    def check():
        for backend, maps in expected.items():
            found = load_here(convolved(backend, 2))
            assert all(map(torch.equal, found, maps))

    with ThreadPoolExecutor(len(METHODS)) as pool:
        busy = [pool.submit(compute, backend) for backend in METHODS]
        try:
            for _ in range(5):
                assert kills.run_forked(check) == 0
        finally:
            done.set()
        assert all(each.result(60) > 0 for each in busy)
