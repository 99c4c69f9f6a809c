"""The triton backend: what it says where it cannot run, its plans, its interpreter."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pelk_mm.ops import choose
from pelk_mm.ops.backends.triton import availability, plan, variants
from pelk_mm.ops.backends.triton.backend import Triton
from pelk_mm.ops.problem import Problem

ROOT = Path(__file__).resolve().parents[3]
PELK = (9, 8, 4, 2, 1, 1, 1, 1, 1, 2, 4, 8, 9)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec('triton') is None, reason='triton is not installed'
)
compiles = pytest.mark.skipif(
    os.environ.get('TRITON_INTERPRET', '0') != '0',
    reason='TRITON_INTERPRET is set: nothing is compiled',
)


def problem(shape=(2, 4, 32, 32), kernel=(7, 7), **rest):
    return Problem(shape, kernel, **{'device': 'cuda', **rest})


def make_plan(shape, taps, dtype=torch.bfloat16, transposed=False):
    size = (sum(taps[0]), sum(taps[1]))
    return plan.Plan(problem(shape, size, dtype=dtype), taps, transposed)


# ------------------------------------------------------------------ where it runs


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'dtype': torch.float64}, 'computes float32, bfloat16, float16, and x is f'),
        ({'plain': True}, 'ONNX'),
        ({'device': 'xpu'}, 'neither compiled for nor run on Intel GPUs'),
        ({'device': 'mps'}, 'NVIDIA GPUs and x is on mps'),
        ({'device': 'meta'}, 'NVIDIA GPUs and x is on meta'),
    ],
)
def test_reasons(changes, reason):
    assert reason in choose.BACKENDS['triton'].why_not(problem(**changes))


def test_amd_gpus_are_not_claimed(monkeypatch):
    monkeypatch.setattr(torch.version, 'hip', '6.4')
    reason = choose.BACKENDS['triton'].why_not(problem())
    assert 'neither compiled for nor run on AMD GPUs (ROCm)' in reason


def test_old_gpus(monkeypatch):
    monkeypatch.setattr(availability, 'load', lambda: None)
    monkeypatch.setattr(availability, 'interpreted', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.version, 'hip', None)
    for least, wanted in ((7, 'needs GPUs of compute capability 8.0'), (8, None)):
        monkeypatch.setattr(availability, 'capability', lambda least=least: least)
        reason = choose.BACKENDS['triton'].why_not(problem())
        assert (reason is None) if wanted is None else wanted in reason


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, 'triton', None)
    for name in ('pack', 'products'):
        module = f'pelk_mm.ops.backends.triton.{name}'
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(availability, 'load', availability.load.__wrapped__)
    reason = availability.why_not('cpu')
    assert 'needs the package triton' in reason
    assert 'pip install triton' in reason


def test_kernels_are_imported_when_a_gpu_asks_for_them():
    """torch imports triton itself where it is installed, but not every torch does."""
    code = (
        'import sys; from pelk_mm import ops; ops.available_backends("xpu"); '
        'print([m for m in sys.modules if "backends.triton.p" in m])'
    )
    finished = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert finished.stdout.strip() == "['pelk_mm.ops.backends.triton.plan']"


def test_a_plane_beyond_32_bits_is_refused(monkeypatch):
    monkeypatch.setattr(availability, 'why_not', lambda device: None)
    backend = choose.BACKENDS['triton']
    assert backend.why_not(problem((256, 1024, 200, 336))) is None
    assert '32 bits' in backend.why_not(problem((1, 1, 40000, 40000)))


# ------------------------------------------------------------------ plans


@pytest.mark.parametrize('pixels', [1, 4, 5, 9, 100])
def test_cells_are_clipped_to_the_taps_that_can_be_in_bounds(pixels):
    sizes = (4, 1, 1, 1, 1, 2, 5)
    indices = [i for i, size in enumerate(sizes) for _ in range(size)]
    taps = list(zip(indices, range(-7, 8), strict=True))
    found = [
        (cell.parameter, cell.start + tap)
        for cell in plan.cells(sizes, pixels)
        for tap in range(cell.length)
    ]
    assert found == [(index, tap) for index, tap in taps if abs(tap) < pixels]


@pytest.mark.parametrize('dtype', plan.SPLITS)
def test_products_cover_every_row_once(dtype):
    """Each product of a high part stands for the taps of its plane."""
    made = make_plan((1, 1, 64, 64), (PELK, PELK), dtype)
    split = made.split
    covered = []
    for product in made.products:
        summed = product.plane >= split.row
        part = (product.plane - split.row) % split.sums if summed else product.plane
        if part or product.row % split.weight:
            continue
        length = 1
        if summed:
            length = made.sums[(product.plane - split.row) // split.sums]
        covered += range(product.offset, product.offset + length)
    assert sorted(covered) == list(range(-25, 26))


def test_products_of_the_paper():
    """Two parts of each sum of three rows and more, in bfloat16."""
    assert len(make_plan((1, 1, 64, 64), (PELK, PELK)).products) == 21
    dense = make_plan((1, 1, 64, 64), ((1,) * 31, (1,) * 31))
    assert len(dense.products) == 31
    exact = make_plan((1, 1, 64, 64), (PELK, PELK), torch.float32)
    assert len(exact.products) == 6 * 13


@pytest.mark.parametrize('shape', [(16, 1024, 100, 168), (256, 64, 56, 56)])
def test_scratch_is_bounded(shape):
    made = make_plan(shape, (PELK, PELK), torch.float32)
    for tile in plan.TILES[9]:
        chunks = made.chunks(tile)
        covered = torch.zeros(shape[:2], dtype=torch.int32)
        for images, channels in chunks:
            covered[images, channels] += 1
        assert bool((covered == 1).all())
        images, channels = chunks[0]
        count = (images.stop - images.start) * (channels.stop - channels.start)
        elements = made.planes * count * made.image_rows * made.pitch
        assert 2 * elements <= plan.SCRATCH_BYTES


def test_no_new_size_of_a_map_changes_what_is_compiled():
    """Constants of the kernels are the same on maps of any size above the kernel's."""
    found = set()
    for size in (26, 31, 57, 200):
        made = make_plan((2, 3, size, 2 * size), (PELK, PELK))
        constants = [variants.add_rows(made), variants.lay_out_weights(made)]
        constants += [variants.correlate(made), variants.add_partial(made)]
        constants += [variants.convolve(made, tile, 2) for tile in plan.TILES[8]]
        found.add(repr(constants))
    assert len(found) == 1


@needs_triton
@compiles
def test_no_size_is_specialised_on():
    pack, products = availability.modules()
    kernels = [pack.lay_out_rows, pack.add_rows, pack.lay_out_weights]
    kernels += [products.convolve, products.correlate, products.add_partial]
    for kernel in kernels:
        for parameter in kernel.params:
            # Addresses are, once per alignment, and triton never is on floats.
            known = parameter.name.startswith('p_') or 'scale' in parameter.name
            known = known or parameter.is_constexpr
            assert known or parameter.do_not_specialize, parameter.name


def test_counts_follow_the_work():
    backend = choose.BACKENDS['triton']
    costs = [
        backend.counted(
            problem((2, 64, 128, 128), (size, size), grid=grid), ('forward',)
        )
        for size, grid in ((31, None), (51, PELK), (51, None), (101, None))
    ]
    assert sorted(costs) == [costs[i] for i in (1, 0, 2, 3)]


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_it_runs_only_where_it_is_asked_for(device, monkeypatch):
    """Nobody has measured it on a GPU, and on the CPU it is interpreted."""
    monkeypatch.delenv(choose.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(availability, 'why_not', lambda device: None)
    small = problem((1, 1, 8, 8), (3, 3), device=device)
    choose._cheapest.cache_clear()
    (chosen,) = choose.choose(small, ('forward',))
    choose._cheapest.cache_clear()
    assert not isinstance(chosen, Triton)
    assert isinstance(choose.choose(small, ('forward',), 'triton')[0], Triton)


# ------------------------------------------------------------------ the kernels


@pytest.mark.long
@needs_triton
def test_under_the_interpreter():
    finished = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-x']
        + [str(Path(__file__).with_name('interpreted_triton.py'))],
        env=dict(os.environ, TRITON_INTERPRET='1', PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-2000:]
