"""What every architecture computes, held to the values in tests/data.

The reference tensors of `shared/` come from the released implementations, but a public
clone lacks them and PeLK has none. These were computed by this package in float64.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from pelk_mm.layers import ReparamDepthwise

DATA = Path(__file__).parent / 'data'
spec = importlib.util.spec_from_file_location('make_golden', DATA / 'make_golden.py')
make_golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_golden)

ARCHITECTURES = list(make_golden.ARCHITECTURES)
#: Those whose mixers alone are merged in some released checkpoints.
MERGEABLE = [name for name in ARCHITECTURES if not name.startswith('pelk')]
#: About ten times what rounding does to maps and gradients, on any instruction set.
#: In training a BatchNorm of the last stage divides by the deviation of a dozen values.
TOLERANCE = {'eval': 5e-5, 'train': 5e-4}
MODES = [
    (name, mode)
    for name in ARCHITECTURES
    for mode in make_golden.modes(make_golden.build(name))
]


@pytest.fixture(autouse=True, scope='module')
def _one_thread(one_thread):
    """For all tests of this file."""


def load(name):
    return torch.load(DATA / f'{name}.pt', weights_only=True)


def build(name, seed):
    model = make_golden.build(name)
    make_golden.draw_weights(model, seed)
    return model


def as_merged(name, seed):
    """Large and small kernels in one, as in a released checkpoint of that form."""
    model = build(name, seed)
    for module in list(model.modules()):
        if isinstance(module, ReparamDepthwise):
            module.switch_to_deploy()
    merged = make_golden.build(name, small_kernel_merged=True)
    merged.load_state_dict(model.state_dict())
    return merged


def as_deployed(name, seed):
    model = build(name, seed)
    model.switch_to_deploy()
    deployed = make_golden.build(name, deploy=True)
    deployed.load_state_dict(model.state_dict())
    return deployed


def map_error(maps, reference):
    """Largest difference in the standard deviations of its map."""
    assert [m.shape for m in maps] == [m.shape for m in reference]
    return max(
        ((ours - theirs).abs().max() / theirs.std()).item()
        for ours, theirs in zip(maps, reference, strict=True)
    )


def gradient_error(gradients, reference):
    """Largest difference as a share of its gradient's norm.

    Where a BatchNorm cancels a parameter's effect its gradient is 0 but for rounding:
    a twentieth of the mean norm is the least to compare with.
    """
    norms = reference[:, 0]
    scale = norms.clamp(min=norms.mean().item() / 20)
    return ((gradients - reference).abs().amax(1) / scale).max().item()


def test_images():
    """The random numbers are those of every other machine."""
    images = load('images')
    assert list(images) == list(make_golden.IMAGES)
    for mode, stored in images.items():
        assert torch.equal(make_golden.draw_images(mode), stored)


def test_files():
    files = [path for path in DATA.iterdir() if path.suffix not in ('.py', '')]
    assert sorted(path.name for path in files) == sorted(
        f'{name}.pt' for name in ['images', *ARCHITECTURES]
    )
    assert sum(path.stat().st_size for path in files) <= 1e6


@pytest.mark.parametrize(('name', 'mode'), MODES)
def test_exact_in_float64(name, mode):
    """Rounding to the float32 of the files is all that may differ."""
    golden = load(name)
    seed, wanted = golden['seed'], golden[mode]
    model = build(name, seed)
    assert [n for n, _ in model.named_parameters()] == golden['parameters']
    found = make_golden.run(model.double(), load('images')[mode], seed, mode == 'train')
    assert map_error(found['maps'], wanted['maps']) < 1e-6
    assert gradient_error(found['gradients'], wanted['gradients']) < 1e-6
    if mode == 'train':
        torch.testing.assert_close(found['statistics'].float(), wanted['statistics'])


@pytest.mark.parametrize('kernels', ['chosen', 'none'])
@pytest.mark.parametrize(
    ('name', 'form'),
    [
        *((name, build) for name in ARCHITECTURES),
        *((name, as_merged) for name in MERGEABLE),
        *((name, as_deployed) for name in ARCHITECTURES),
    ],
    ids=lambda value: getattr(value, '__name__', value),
)
@torch.no_grad()
def test_maps(name, form, kernels, monkeypatch):
    if kernels == 'none':
        monkeypatch.setenv('PELK_MM_ISA', kernels)
    golden = load(name)
    wanted = golden['eval']
    maps = form(name, golden['seed'])(make_golden.normalize(load('images')['eval']))
    assert map_error(maps, wanted['maps']) < TOLERANCE['eval']


@pytest.mark.parametrize('kernels', ['chosen', 'none'])
@pytest.mark.parametrize(('name', 'mode'), MODES)
def test_gradients(name, mode, kernels, monkeypatch):
    if kernels == 'none':
        monkeypatch.setenv('PELK_MM_ISA', kernels)
    golden = load(name)
    wanted, seed = golden[mode], golden['seed']
    model = build(name, seed)
    found = make_golden.run(model, load('images')[mode], seed, mode == 'train')
    assert map_error(found['maps'], wanted['maps']) < TOLERANCE[mode]
    assert gradient_error(found['gradients'], wanted['gradients']) < TOLERANCE[mode]
    if mode == 'train':
        torch.testing.assert_close(found['statistics'], wanted['statistics'])


@pytest.mark.parametrize('name', ARCHITECTURES)
@torch.no_grad()
def test_one_tap_shows(name):
    """The tolerance lets no change of one weight by a tenth pass."""
    golden = load(name)
    model = build(name, golden['seed'])
    mixer = model.stages[0].blocks[0].mixer
    conv = next(m for m in mixer.modules() if getattr(m, 'weight', None) is not None)
    conv.weight.view(-1)[conv.weight[0].numel() // 2] *= 1.1  # the centre
    maps = model(make_golden.normalize(load('images')['eval']))
    assert map_error(maps, golden['eval']['maps']) > TOLERANCE['eval']
