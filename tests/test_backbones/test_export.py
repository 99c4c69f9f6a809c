"""Exported backbones, held to the modules that they come from."""

import io

import pytest
import torch

from pelk_mm.backbones import PeLK, RepLKNet, SLaK

ARCH = dict(channels=(8, 8, 16, 16), depths=(1, 1, 1, 1), kernel_sizes=(15, 13, 11, 7))
BACKBONES = {
    # This radius gives every stage rectangles of several taps.
    'pelk': lambda: PeLK(dict(ARCH, central_radius=1)),
    'slak': lambda: SLaK(ARCH),
    'replknet': lambda: RepLKNet(dict(ARCH, small_kernel=5)),
}

pytestmark = [
    # Checks of shapes are meant to be decided while tracing, and what torch says of
    # its own older exporters is no news of ours.
    pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning'),
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
]


@pytest.fixture(params=['trained', 'deployed'])
def form(request):
    return request.param


@pytest.fixture(params=BACKBONES)
def model(request, form, randomise):
    model = randomise(BACKBONES[request.param]()).eval()
    if form == 'deployed':
        model.switch_to_deploy()
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96)


def assert_same(maps, expected):
    assert len(maps) == len(expected)
    for ours, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('dynamo', [True, False], ids=['export', 'torchscript'])
def test_onnx(model, images, tmp_path, dynamo):
    pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    path = str(tmp_path / 'backbone.onnx')
    axes = {0: 'batch', 2: 'height', 3: 'width'}
    any_size = (
        dict(dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.DYNAMIC),))
        if dynamo
        else dict(dynamic_axes={'images': axes})
    )
    torch.onnx.export(
        model, (images,), path, dynamo=dynamo, input_names=['images'], **any_size
    )
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    # The last leaves maps that are smaller than their kernels.
    for shape in (images.shape, (1, 3, 96, 128), (2, 3, 32, 32)):
        other = torch.randn(shape)
        maps = session.run(None, {session.get_inputs()[0].name: other.numpy()})
        assert_same([torch.from_numpy(m) for m in maps], model(other))


@torch.no_grad()
def test_torchscript(model, images):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, images), buffer)
    buffer.seek(0)
    assert_same(torch.jit.load(buffer)(images), model(images))


def test_these_grids_share():
    stages = BACKBONES['pelk']().stages
    grids = [stage.blocks[0].mixer.large.conv.sharing_grid for stage in stages]
    assert all(max(grid) > 1 for grid in grids)
