"""Memory that does not grow: with iterations, nor with images of ever new sizes."""

import ctypes
import gc
import importlib
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import MODELS

from pelk_mm.ops import depthwise_conv2d, peripheral_conv2d

SIZES = dict(channels=[8, 16], depths=[1, 1], kernel_sizes=[31, 13])
BACKBONES = {
    'PeLK': dict(SIZES, central_radius=2),
    'SLaK': SIZES,
    'RepLKNet': SIZES,
}
GRID = (4, 2, 1, 1, 1, 2, 4)


class Mallinfo(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ('arena', 'ordblks', 'smblks', 'hblks', 'hblkhd')
        + ('usmblks', 'fsmblks', 'uordblks', 'fordblks', 'keepcost')
    ]


def resident():
    """Bytes of this process that are in memory, and bytes that were asked for."""
    gc.collect()
    library = ctypes.CDLL(None)
    try:
        library.mallinfo2.restype = Mallinfo
        library.malloc_trim(0)
        info = library.mallinfo2()
        text = Path('/proc/self/status').read_text()
    except (AttributeError, OSError):
        pytest.skip('memory is counted with glibc on Linux')
    pages = int(re.search(r'^VmRSS:\s+(\d+) kB', text, re.MULTILINE)[1]) * 1024
    return SimpleNamespace(pages=pages, asked=info.uordblks + info.hblkhd)


def growth(step, warm_up, iterations):
    """What iterations after the first ones add, as shares of what was there."""
    for i in range(warm_up):
        step(i)
    before = resident()
    for i in range(warm_up, iterations):
        step(i)
    after = resident()
    return (
        after.pages / before.pages - 1,
        after.asked / before.asked - 1,
    )


@pytest.mark.slow
@pytest.mark.parametrize('training', [True, False], ids=['training', 'inference'])
@pytest.mark.parametrize('kind', BACKBONES)
def test_iterations_of_one_shape_leave_nothing_behind(kind, training):
    model = MODELS.build(dict(type=kind, arch=BACKBONES[kind], out_indices=(0, 1)))
    model.train(training)
    optimizer = torch.optim.AdamW(model.parameters())
    images = torch.randn(2, 3, 64, 64)

    def step(_):
        with torch.set_grad_enabled(training):
            maps = model(images)
            if training:
                optimizer.zero_grad()
                sum(each.square().mean() for each in maps).backward()
                optimizer.step()

    pages, asked = growth(step, 30, 300)
    print(f'{kind}: pages {pages:+.2%}, asked for {asked:+.2%}')
    assert pages < 0.02
    assert asked < 0.02


def caches():
    """The functions of the operators that remember results, by name."""
    rooms = ('choose', 'problem', 'stopwatch', 'backends.cpu.kernels')
    rooms += tuple(f'backends.triton.{name}' for name in ('backend', 'launch'))
    found = {}
    for room in rooms:
        module = importlib.import_module(f'pelk_mm.ops.{room}')
        for name, value in vars(module).items():
            if hasattr(value, 'cache_info') and value.__module__ == module.__name__:
                found[f'{room}.{name}'] = value
    return found


@pytest.mark.long
def test_ever_new_shapes_fill_no_memory():
    draw = random.Random(0)
    weight, shared = torch.randn(6, 9, 9), torch.randn(6, len(GRID), len(GRID))
    weight.requires_grad_(), shared.requires_grad_()
    seen = set()

    def step(_):
        shape = draw.randint(1, 2), 6, draw.randint(1, 60), draw.randint(1, 60)
        seen.add(shape)
        x = torch.randn(shape).requires_grad_()
        out = depthwise_conv2d(x, weight) + peripheral_conv2d(x, shared, GRID)
        out.sum().backward()

    pages, asked = growth(step, 100, 200)
    assert len(seen) > 190
    assert pages < 0.02
    assert asked < 0.02
    found = caches()
    assert {'choose._cheapest', 'problem.fast_length'} <= found.keys()
    for name, function in found.items():
        info = function.cache_info()
        # Those without a bound have no arguments.
        most = 1 if info.maxsize is None else info.maxsize
        assert info.currsize <= most, name
    assert found['choose._cheapest'].cache_info().currsize > 100
