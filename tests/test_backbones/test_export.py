"""Exported backbones, held to the modules that they come from."""

import io
import subprocess
import sys

import pytest
import torch

from pelk_mm import ops
from pelk_mm.backbones import PeLK, RepLKNet, SLaK

ARCH = dict(channels=(8, 8, 16, 16), depths=(1, 1, 1, 1), kernel_sizes=(15, 13, 11, 7))
BACKBONES = {
    # This radius gives every stage rectangles of several taps.
    'pelk': lambda **kw: PeLK(dict(ARCH, central_radius=1), **kw),
    'slak': lambda **kw: SLaK(ARCH, **kw),
    'replknet': lambda **kw: RepLKNet(dict(ARCH, small_kernel=5), **kw),
}
SIZES = {
    0: torch.export.Dim('batch', max=64),
    2: torch.export.Dim('height', min=64, max=2048),
    3: torch.export.Dim('width', min=64, max=2048),
}
#: Sizes of images, the last of which leave maps that are smaller than their kernels.
SHAPES = ((2, 3, 64, 96), (1, 3, 97, 128), (3, 3, 64, 64))

#: Runs in a process that has torch alone.
ELSEWHERE = """
import sys, torch
kind, path, inputs, outputs = sys.argv[1:]
if kind == 'program':
    model = torch.export.load(path).module()
elif kind == 'script':
    model = torch.jit.load(path)
else:
    model = torch._inductor.aoti_load_package(path)
with torch.no_grad():
    maps = [tuple(model(images)) for images in torch.load(inputs)]
torch.save(maps, outputs)
assert 'pelk_mm' not in sys.modules
"""

pytestmark = [
    # Checks of shapes are meant to be decided while tracing, and what torch says of
    # its own older exporters is no news of ours.
    pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning'),
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
    pytest.mark.filterwarnings('ignore::FutureWarning'),
]


@pytest.fixture(params=['trained', 'deployed'], scope='module')
def form(request):
    return request.param


@pytest.fixture(params=BACKBONES, scope='module')
def model(request, form, randomise):
    torch.manual_seed(0)
    model = randomise(BACKBONES[request.param]()).eval()
    if form == 'deployed':
        model.switch_to_deploy()
    return model


@pytest.fixture(scope='module')
def program(model, open_sizes):
    """A backbone exported once, with torch's operators alone and sizes left open."""
    with ops.plain(), torch.no_grad():
        images = torch.randn(SHAPES[0])
        return torch.export.export(
            model,
            (images,),
            dynamic_shapes=(SIZES,),
            # SLaK's sums of stripes compare strides, which torch cannot prove.
            **open_sizes,
        )


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96)


def assert_same(maps, expected):
    assert len(maps) == len(expected)
    for ours, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def assert_same_elsewhere(kind, path, model, folder, shapes=SHAPES):
    """Hold what a process without the package computes from a file to the model."""
    images = [torch.randn(shape) for shape in shapes]
    torch.save(images, folder / 'images.pt')
    names = [kind, str(path), str(folder / 'images.pt'), str(folder / 'maps.pt')]
    subprocess.run(
        [sys.executable, '-I', '-W', 'ignore', '-c', ELSEWHERE, *names],
        check=True,
        timeout=300,
    )
    for maps, inputs in zip(torch.load(folder / 'maps.pt'), images, strict=True):
        assert_same(maps, model(inputs))


def onnx_maps(path, images):
    onnxruntime = pytest.importorskip('onnxruntime')
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    maps = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return [torch.from_numpy(m) for m in maps]


# ------------------------------------------------- torch's operators alone, on request


@pytest.mark.long
@torch.no_grad()
def test_program_has_torch_operators_alone(model, program):
    targets = {n.target for n in program.graph.nodes if n.op == 'call_function'}
    operators = {t for t in targets if isinstance(t, torch._ops.OpOverload)}
    assert {t.namespace for t in operators} == {'aten'}
    # The rest is Python's and torch's arithmetic of sizes.
    rest = {t.__module__.partition('.')[0] for t in targets - operators}
    assert rest <= {'_operator', 'math', 'torch'}
    module = program.module()
    for shape in SHAPES:
        images = torch.randn(shape)
        assert_same(module(images), model(images))


@pytest.mark.slow  # torch's own code from a program that the test above has seen
def test_onnx_of_a_program(model, program, tmp_path):
    pytest.importorskip('onnxscript')
    path = str(tmp_path / 'backbone.onnx')
    torch.onnx.export(program, f=path)
    with torch.no_grad():
        for shape in SHAPES:
            images = torch.randn(shape)
            assert_same(onnx_maps(path, images), model(images))


@pytest.mark.long
@torch.no_grad()
def test_frozen_trace_has_torch_operators_alone(model, images):
    with ops.plain():
        traced = torch.jit.freeze(torch.jit.trace(model, images))
    assert 'pelk_mm::' not in str(traced.inlined_graph)
    for shape in (*SHAPES, (1, 3, 33, 32)):
        images = torch.randn(shape)
        assert_same(traced(images), model(images))


@pytest.mark.long
@pytest.mark.parametrize('kind', ['program', 'script'])
def test_runs_where_the_package_is_missing(kind, randomise, tmp_path):
    model = randomise(BACKBONES['pelk']()).eval()
    images, path = torch.randn(SHAPES[0]), tmp_path / 'model.pt2'
    with ops.plain(), torch.no_grad():
        if kind == 'program':
            torch.export.save(torch.export.export(model, (images,), strict=False), path)
        else:
            torch.jit.save(torch.jit.freeze(torch.jit.trace(model, images)), path)
    assert_same_elsewhere(kind, path, model, tmp_path, SHAPES[:1])


@pytest.mark.slow
def test_aot_inductor(model, program, tmp_path):
    path = str(tmp_path / 'model.pt2')
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    assert_same_elsewhere('package', path, model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('exported', [False, True])
@torch.no_grad()
def test_openvino(model, images, exported):
    openvino = pytest.importorskip('openvino')
    with ops.plain():
        if exported:
            converted = openvino.convert_model(
                torch.export.export(model, (images,), strict=False)
            )
        else:
            converted = openvino.convert_model(model, example_input=images)
    precision = dict(INFERENCE_PRECISION_HINT='f32')
    compiled = openvino.compile_model(converted, 'CPU', precision)
    for shape in SHAPES[:1] if exported else SHAPES:
        images = torch.randn(shape)
        maps = map(torch.from_numpy, compiled(images.numpy()).values())
        assert_same(list(maps), model(images))


@pytest.mark.parametrize('kind', BACKBONES)
def test_training_with_torch_operators_alone(kind, images):
    """Blocks computed anew in the backward pass follow the forward pass's switch."""
    torch.manual_seed(0)
    # In float64, as BatchNorms of few pixels amplify what is rounded.
    model = BACKBONES[kind](with_cp=True).double().train()
    images = images.double()
    with ops.plain():
        maps = model(images)
    # Outside: were other operators to run, torch would refuse what they save.
    sum(m.square().sum() for m in maps).backward()
    got = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    sum(m.square().sum() for m in model(images)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, msg=name)


# -------------------------------------------------------------- without being asked


@torch.no_grad()
def check_onnx(model, images, tmp_path, dynamo):
    """These exporters leave our operators out by themselves."""
    pytest.importorskip('onnxscript')
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
    # The last leaves maps that are smaller than their kernels.
    for shape in (images.shape, (1, 3, 96, 128), (2, 3, 32, 32)):
        other = torch.randn(shape)
        assert_same(onnx_maps(path, other), model(other))


def test_onnx_of_pelk(randomise, images, tmp_path):
    """One model and exporter of those below, which take minutes."""
    model = randomise(BACKBONES['pelk']()).eval()
    check_onnx(model, images, tmp_path, dynamo=False)


@pytest.mark.slow
@pytest.mark.parametrize('dynamo', [True, False], ids=['export', 'torchscript'])
def test_onnx(model, images, tmp_path, dynamo):
    check_onnx(model, images, tmp_path, dynamo)


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
