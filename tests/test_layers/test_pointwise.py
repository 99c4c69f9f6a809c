"""Pointwise layers, and what inference does in place and in chunks."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelk_mm import ops
from pelk_mm.backbones import PeLK, RepLKNet, SLaK
from pelk_mm.layers import (
    ConvFFN,
    ConvNeXtBlock,
    PointwiseConv2d,
    PointwiseLinear,
    RepLKBlock,
    convnext_block,
    lay_out,
    pack_pointwise,
    pointwise,
    replknet_block,
)
from pelk_mm.layers.pointwise import add_in_chunks
from pelk_mm.ops import _torch_compat

SIZES = dict(channels=(8, 12), depths=(1, 2), kernel_sizes=(15, 7))
BACKBONES = {
    'pelk': lambda **kw: PeLK(dict(SIZES, central_radius=1), **kw),
    'slak': lambda **kw: SLaK(SIZES, **kw),
    'replknet': lambda **kw: RepLKNet(SIZES, **kw),
}
LAYOUTS = [torch.contiguous_format, torch.channels_last]

needs_onednn = pytest.mark.skipif(
    not _torch_compat.has_onednn(torch.float32), reason='torch has no oneDNN here'
)


@pytest.fixture(params=BACKBONES)
def backbone(request, randomise):
    torch.manual_seed(0)
    return randomise(BACKBONES[request.param](out_indices=(0, 1))).eval()


@pytest.fixture
def chunks(monkeypatch):
    """Small chunks, and how often a block is computed in some."""
    monkeypatch.setattr(pointwise, 'CHUNK', 640)
    found = []

    def record(*args):
        out = add_in_chunks(*args)
        found.append(out is not None)
        return out

    for room in (convnext_block, replknet_block):
        monkeypatch.setattr(room, 'add_in_chunks', record)
    return found


def images(layout=torch.contiguous_format):
    torch.manual_seed(1)
    return torch.randn(2, 3, 40, 56).contiguous(memory_format=layout)


def assert_maps_close(found, expected, bound=1e-5):
    for ours, theirs in zip(found, expected, strict=True):
        error = (ours.double() - theirs.double()).abs().max()
        assert error <= bound * theirs.abs().max()


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('layout', LAYOUTS)
@torch.no_grad()
def test_backbones_against_float64(backbone, library, chunks, layout, deploy):
    expected = copy.deepcopy(backbone).double()(images().double())
    chunks.clear()
    if deploy:
        backbone.switch_to_deploy()
    given = images(layout)
    kept = given.clone()
    found, again = backbone(given), backbone(given)
    assert any(chunks) == (deploy or not isinstance(backbone, RepLKNet))
    assert torch.equal(given, kept)
    assert all(map(torch.equal, found, again))
    assert_maps_close(found, expected)
    assert all(m.is_contiguous() for m in found)


@pytest.mark.long
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('deploy', [False, True])
def test_gradients_of_backbones_against_float64(backbone, library, layout, deploy):
    if deploy:
        backbone.switch_to_deploy()
    wide = copy.deepcopy(backbone).double()

    def gradients(model, dtype):
        given = images(layout).to(dtype).requires_grad_()
        sum(m.square().sum() for m in model(given)).backward()
        return [given.grad, *(p.grad for p in model.parameters())]

    found, expected = gradients(backbone, torch.float32), gradients(wide, torch.float64)
    assert_maps_close(found, expected, 1e-4)


@torch.no_grad()
def test_bfloat16_autocast(backbone, library, chunks):
    expected = backbone(images())
    backbone.switch_to_deploy()
    with torch.autocast('cpu', torch.bfloat16):
        found = backbone(images())
    assert chunks[-1]
    assert_maps_close(found, expected, 0.1)


@needs_onednn
@torch.no_grad()
def test_packed_backbones(backbone, onednn):
    backbone.switch_to_deploy()
    state = {name: t.clone() for name, t in backbone.state_dict().items()}
    expected = backbone(images())
    layers = [m for m in backbone.modules() if hasattr(m, 'packed')]
    size = pack_pointwise(backbone)
    assert size == 4 * sum(layer.weight.numel() for layer in layers) > 0
    assert all(layer.packed for layer in layers)
    assert_maps_close(backbone(images()), expected)
    assert backbone.state_dict().keys() == state.keys()
    assert all(torch.equal(t, state[n]) for n, t in backbone.state_dict().items())
    again = pickle.loads(pickle.dumps(backbone))  # noqa: S301 - our own
    for twin in (copy.deepcopy(backbone), again):
        assert not any(getattr(m, 'packed', None) for m in twin.modules())
        assert_maps_close(twin(images()), expected)
    # What was packed counts no more.
    for parameter in backbone.parameters():
        parameter.mul_(1.1)
    changed = backbone(images())
    for layer in layers:
        layer.packed = None
    assert all(map(torch.equal, changed, backbone(images())))


@torch.no_grad()
def test_nothing_is_packed_where_that_is_of_no_use(monkeypatch):
    monkeypatch.setenv('PELK_MM_LINEAR', 'torch')
    layer = PointwiseLinear(3, 4)
    assert pack_pointwise(layer) == 0
    assert layer.packed is None
    assert pack_pointwise(layer, torch.float64) == 0


@torch.no_grad()
def test_threads_share_a_packed_model(backbone, onednn):
    backbone.switch_to_deploy()
    pack_pointwise(backbone)
    given = images()
    expected = backbone(given)

    def predict(_):
        with torch.no_grad():
            return backbone(given)

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(predict, range(16)):
            assert all(map(torch.equal, found, expected))


# ------------------------------------------------------------------ layers


@pytest.mark.parametrize('layout', LAYOUTS)
def test_convolution(library, layout):
    conv = PointwiseConv2d(6, 9)
    x = torch.randn(2, 6, 5, 7).contiguous(memory_format=layout).requires_grad_()
    expected = F.conv2d(x, conv.weight, conv.bias)
    assert torch.equal(conv(x), expected)  # with gradients by torch's
    with torch.no_grad():
        found = conv(x)
    assert found.stride() == expected.stride()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(conv(x[0]), expected[0])


def test_layers_are_torchs():
    for layer, kind in (
        (PointwiseLinear(2, 3), nn.Linear(2, 3)),
        (PointwiseConv2d(2, 3), nn.Conv2d(2, 3, 1)),
    ):
        assert isinstance(layer, type(kind))
        layer.load_state_dict(kind.state_dict())


# ------------------------------------------------------------------ in place


def blocks():
    yield ConvNeXtBlock(6, nn.Identity(), 0.5, 1.0)
    yield ConvFFN(6, 24, None, 0.5, deploy=True)
    yield RepLKBlock(6, PointwiseConv2d(8, 8), 8, None, 0.5, deploy=True)


def feature_map():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 9, 11)
    return x.contiguous(memory_format=torch.channels_last)


def expected_output(block, x):
    with torch.enable_grad(), ops.plain():
        return block(x).detach()


@pytest.mark.parametrize('kind', range(3))
def test_blocks_in_place(kind, library, chunks):
    block = list(blocks())[kind].eval()
    x = feature_map()
    kept = x.clone()
    expected = expected_output(block, x)
    chunks.clear()
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected)
        assert torch.equal(x, kept)
        contiguous = x.contiguous()
        torch.testing.assert_close(block(contiguous), expected)
        assert torch.equal(contiguous, kept)
        assert block(x[:0]).shape == (0, 6, 9, 11)
    assert chunks == ([] if kind == 2 else [True, False, False])


@pytest.mark.parametrize('kind', range(3))
@torch.no_grad()
def test_hooks_see_what_they_did(kind, library, chunks):
    block = list(blocks())[kind].eval()
    names = [n for n, m in block.named_modules() if n and not list(m.children())]

    def outputs(plain):
        seen = {}
        handles = [
            block.get_submodule(name).register_forward_hook(
                lambda _, args, out, name=name: seen.update({name: (*args, out)})
            )
            for name in names
        ]
        with ops.plain(plain):
            block(feature_map())
        for handle in handles:
            handle.remove()
        return seen

    torch.testing.assert_close(outputs(False), outputs(True))
    assert not any(chunks)


@pytest.mark.parametrize('kind', range(3))
@torch.no_grad()
def test_hooks_of_all_modules_see_what_they_did(kind, library, chunks):
    block = list(blocks())[kind].eval()

    def outputs(plain):
        seen = []
        register = nn.modules.module.register_module_forward_hook
        with ops.plain(plain), register(lambda _, args, out: seen.append((*args, out))):
            block(feature_map())
        return seen

    torch.testing.assert_close(outputs(False), outputs(True))
    assert not any(chunks)


@pytest.mark.parametrize('kind', range(3))
def test_only_one_parameter_needs_a_gradient(kind, library):
    names = [n for n, _ in list(blocks())[kind].named_parameters()]
    for name in names:
        block = list(blocks())[kind].eval().requires_grad_(False)
        block.get_parameter(name).requires_grad_()
        block(feature_map()).sum().backward()
        found = block.get_parameter(name).grad.clone()
        block.zero_grad()
        with ops.plain():
            block(feature_map()).sum().backward()
        torch.testing.assert_close(
            found, block.get_parameter(name).grad, atol=1e-4, rtol=1e-4
        )


@torch.no_grad()
def test_parts_that_are_not_pointwise_are_computed_as_a_whole(chunks):
    for name, part in (
        ('act', nn.GELU('tanh')),
        ('act', nn.Softmax(dim=1)),
        ('pointwise_conv1', nn.Sequential(PointwiseLinear(6, 24))),
    ):
        block = ConvNeXtBlock(6, nn.Identity(), 0.0, 1.0).eval()
        part.out_features = 24
        setattr(block, name, part)
        torch.testing.assert_close(
            block(feature_map()), expected_output(block, feature_map())
        )
    assert not any(chunks)


@torch.no_grad()
def test_layout_of_images():
    x = torch.randn(2, 3, 8, 8)
    assert lay_out(x).is_contiguous(memory_format=torch.channels_last)
    assert lay_out(x.to('meta')).is_contiguous()
    with ops.plain():
        assert lay_out(x) is x
    with torch.enable_grad():
        assert lay_out(x) is x


@pytest.mark.parametrize('kind', BACKBONES)
@torch.no_grad()
def test_programs_have_torchs_operators_alone(kind, onednn):
    model = BACKBONES[kind](out_indices=(0, 1), deploy=True).eval()
    pack_pointwise(model)
    with ops.plain():
        program = torch.export.export(model, (images(),), strict=False)
    graph = str(program.graph)
    assert 'mkldnn' not in graph
    assert 'pelk_mm' not in graph
    assert_maps_close(program.module()(images()), model(images()))
