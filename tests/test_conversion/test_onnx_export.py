"""Whole segmenters and detectors in onnxruntime, held to torch."""

import json

import pytest
import torch
from mmengine.config import Config

from pelk_mm.backbones import PeLK
from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.conversion.deploy import deploy_checkpoint
from pelk_mm.conversion.onnx_export import export_onnx
from pelk_mm.conversion.onnx_program import export_program
from pelk_mm.conversion.trained import build_model, load_config
from pelk_mm.ops import plain

BACKBONE = """
custom_imports = dict(imports=['pelk_mm'], allow_failed_imports=False)
backbone = dict(
    type='{kind}',
    arch=dict(
        channels=(8, 12, 8, 8), depths=(1, 1, 1, 1), kernel_sizes=(31, 13, 9, 7){more}
    ),
)
"""
UPERHEAD = """
default_scope = 'mmseg'
norm_cfg = dict(type='SyncBN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[120.0, 110.0, 100.0], std=[60.0, 58.0, 57.0],
        bgr_to_rgb=True,
    ),
    backbone=backbone,
    decode_head=dict(
        type='UPerHead', in_channels=[8, 12, 8, 8], in_index=[0, 1, 2, 3], channels=8,
        pool_scales=(1, 2, 3, 6), num_classes=3, norm_cfg=norm_cfg,
        align_corners=False,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
"""
FCOS = """
default_scope = 'mmdet'
model = dict(
    type='FCOS',
    backbone=backbone,
    neck=dict(type='FPN', in_channels=[8, 12, 8, 8], out_channels=8, num_outs=5),
    bbox_head=dict(
        type='FCOSHead', num_classes=3, in_channels=8, feat_channels=32, stacked_convs=1
    ),
)
"""
MORE = {'PeLK': ', central_radius=1'}


@pytest.fixture
def trained(tmp_path, randomise):
    """Writes a config and a checkpoint of its model; returns both and the model."""
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    torch.set_num_threads(1)

    def make(kind='PeLK', text=UPERHEAD, meta=None):
        pytest.importorskip('mmseg' if text is UPERHEAD else 'mmdet')
        path = tmp_path / 'config.py'
        backbone = BACKBONE.format(kind=kind, more=MORE.get(kind, ''))
        path.write_text(backbone + text)
        cfg = load_config(path)
        model = randomise(build_model(cfg))
        content = dict(meta=meta or {}, state_dict=model.state_dict())
        torch.save(content, tmp_path / 'trained.pth')
        return cfg, tmp_path / 'trained.pth', model

    return make


def run(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    maps = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return [torch.from_numpy(m) for m in maps]


@torch.no_grad()
def logits_of(model, images):
    metas = [dict(img_shape=images.shape[2:])] * len(images)
    return model.encode_decode(images, metas)


def notes_of(path):
    onnx = pytest.importorskip('onnx')
    entries = onnx.load(path).metadata_props
    return {entry.key: json.loads(entry.value) for entry in entries}


@pytest.mark.slow  # torch computes with sizes of maps symbolically, for a minute
def test_factored_segmenter_of_open_sizes(trained, tmp_path):
    classes, palette = ['a', 'b', 'c'], [[0, 1, 2]] * 3
    meta = dict(dataset_meta=dict(classes=classes, palette=palette))
    cfg, checkpoint, model = trained(meta=meta)
    out, said = tmp_path / 'a.onnx', []
    report = export_onnx(
        cfg, checkpoint, out, (64, 96), dynamic=True, factored=True, say=said.append
    )
    assert report.inputs == {'images': ['batch', 3, 'height', 'width']}
    assert list(report.outputs) == ['logits']
    assert report.convolutions.factored == [31]
    sizes = [check.shapes[0] for check in report.checks]
    assert sizes == [(2, 3, 64, 96), (1, 3, 97, 193), (1, 3, 64, 96)]
    assert all(0 < check.relative < 1e-4 for check in report.checks)
    # Sizes that the export has not seen, one of which leaves maps of a single row.
    for shape in ((3, 3, 80, 100), (1, 3, 33, 65)):
        images = torch.randn(shape)
        (got,) = run(out, images)
        torch.testing.assert_close(got, logits_of(model, images), rtol=1e-3, atol=1e-4)
    notes = notes_of(out)
    assert (notes['classes'], notes['palette']) == (classes, palette)
    assert (notes['mean'], notes['std']) == ([120, 110, 100], [60, 58, 57])
    assert notes['bgr_to_rgb']
    assert not notes['normalised_inside']


@pytest.mark.long
@pytest.mark.usefixtures('open_sizes')
def test_normalised_inside(trained, tmp_path):
    cfg, checkpoint, model = trained()
    out = tmp_path / 'a.onnx'
    report = export_onnx(cfg, checkpoint, out, (64, 64), normalise=True, factored=True)
    assert report.convolutions.factored == [31]
    assert report.inputs == {'images': [1, 3, 64, 64]}
    assert len(report.checks) == 3
    loaded = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    images = model.data_preprocessor(dict(inputs=[loaded[0]], data_samples=None))
    (got,) = run(out, loaded.float())
    wanted = logits_of(model, images['inputs'])
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
    assert notes_of(out)['normalised_inside']


@pytest.mark.long
@pytest.mark.usefixtures('open_sizes')
def test_detector_is_exported_to_its_neck(trained, tmp_path):
    cfg, checkpoint, model = trained('RepLKNet', FCOS)
    out, said = tmp_path / 'a.onnx', []
    report = export_onnx(cfg, checkpoint, out, (64, 96), say=said.append)
    assert said[0].startswith('backbone and neck alone: ')
    assert list(report.outputs) == [f'map{i}' for i in range(5)]
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        wanted = model.extract_feat(images)
    for ours, theirs in zip(run(out, images), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def save_program(path, context, **sizes):
    arch = dict(channels=(8,), depths=(1,), kernel_sizes=(15,), central_radius=1)
    model = PeLK(arch, out_indices=(0,)).eval()
    with context, torch.no_grad():
        program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), **sizes)
    torch.export.save(program, path)


@pytest.mark.long
@pytest.mark.usefixtures('open_sizes')
@pytest.mark.parametrize('half', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_program(tmp_path, half):
    pytest.importorskip('onnxscript')
    dims = {0: torch.export.Dim('n', max=9), 2: torch.export.Dim('h', min=64, max=80)}
    save_program(tmp_path / 'a.pt2', plain(), dynamic_shapes=(dims,))
    report = export_program(tmp_path / 'a.pt2', tmp_path / 'a.onnx', half=half)
    assert list(report.inputs.values())[0][1::2] == [3, 64]
    heights = [check.shapes[0][2] for check in report.checks]
    assert heights == [64, 80, 64]
    assert all(check.relative > 1e-5 for check in report.checks) is half


def test_program_with_our_operators(tmp_path):
    pytest.importorskip('onnxscript')
    save_program(tmp_path / 'a.pt2', plain(False))
    message = r'calls pelk_mm\.\S+, which ONNX has not; .* `pelk_mm.ops.plain\(\)`'
    with pytest.raises(CheckpointError, match=message):
        export_program(tmp_path / 'a.pt2', tmp_path / 'a.onnx')
    assert not (tmp_path / 'a.onnx').exists()


@pytest.mark.parametrize(
    ('name', 'message'),
    [('none.pt2', 'does not exist'), ('bad.pt2', 'is no program of torch.export.save')],
)
def test_no_program(tmp_path, name, message):
    pytest.importorskip('onnxscript')
    (tmp_path / 'bad.pt2').write_bytes(b'nothing')
    with pytest.raises(CheckpointError, match=message):
        export_program(tmp_path / name, tmp_path / 'a.onnx')


@pytest.mark.parametrize(
    ('kind', 'shape', 'options', 'message'),
    [
        ('SLaK', (64, 64), dict(factored=True), 'SLaK has none; leave it out'),
        ('PeLK', (31, 64), {}, 'images of 31 x 64 are too small; .* 32 x 32'),
        ('PeLK', (48, 64), dict(dynamic=True), 'images of 48 x 64 .* 64 x 64'),
    ],
)
def test_wrong_requests(trained, tmp_path, kind, shape, options, message):
    cfg, checkpoint, _ = trained(kind)
    with pytest.raises(CheckpointError, match=message):
        export_onnx(cfg, checkpoint, tmp_path / 'a.onnx', shape, **options)
    assert not (tmp_path / 'a.onnx').exists()


def test_checkpoint_of_another_model(trained, tmp_path):
    _, checkpoint, _ = trained('SLaK')
    weights = torch.load(checkpoint)
    cfg, checkpoint, _ = trained('PeLK')
    torch.save(weights, checkpoint)
    with pytest.raises(CheckpointError, match='does not fit the config'):
        export_onnx(cfg, checkpoint, tmp_path / 'a.onnx', (64, 64))


def test_classifier_is_refused(tmp_path):
    pytest.importorskip('onnxscript')
    model = dict(type='Unknown', backbone=dict(type='PeLK'))
    cfg = Config(dict(model=model), filename=None)
    with pytest.raises(CheckpointError, match='segmenters of mmseg and detectors'):
        export_onnx(cfg, tmp_path / 'a.pth', tmp_path / 'a.onnx', (64, 64))


@pytest.mark.slow
@pytest.mark.parametrize('form', [{}, dict(deploy=True), dict(half=True)])
@pytest.mark.parametrize('kind', ['PeLK', 'SLaK', 'RepLKNet'])
def test_families_and_forms(trained, tmp_path, kind, form):
    cfg, checkpoint, _ = trained(kind)
    out = tmp_path / 'a.onnx'
    report = export_onnx(cfg, checkpoint, out, (64, 64), dynamic=True, **form)
    assert len(report.checks) == 3
    assert out.is_file()


@pytest.mark.slow
def test_detector_of_open_sizes(trained, tmp_path):
    cfg, checkpoint, model = trained('PeLK', FCOS)
    out = tmp_path / 'a.onnx'
    # FPN halves the last map once more.
    with pytest.raises(CheckpointError, match='64 x 96 are too small; .* 128 x 128'):
        export_onnx(cfg, checkpoint, out, (64, 96), dynamic=True)
    export_onnx(cfg, checkpoint, out, (128, 160), dynamic=True, factored=True)
    images = torch.randn(2, 3, 136, 128)
    with torch.no_grad():
        wanted = model.extract_feat(images)
    for ours, theirs in zip(run(out, images), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_checkpoint_in_deployment_form(trained, tmp_path):
    cfg, checkpoint, _ = trained('SLaK')
    deployed = tmp_path / 'deployed.pth'
    deploy_checkpoint(cfg.filename, checkpoint, deployed)
    export_onnx(cfg, deployed, tmp_path / 'a.onnx', (64, 64))
