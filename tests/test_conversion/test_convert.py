"""Every kind of source, and what the report says of it."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope

from pelk_mm.checkpoints import detect_family, from_released
from pelk_mm.checkpoints.files import CheckpointError, read_checkpoint
from pelk_mm.conversion.convert import convert_checkpoint
from pelk_mm.conversion.infer import build_backbone, infer_backbone

CONFIGS = Path(__file__).parents[2] / 'configs'
MANIFESTS = {
    **{
        f'replknet{size}_{form}': dict(type='RepLKNet', arch=arch, **more)
        for size, arch, more in (
            ('31b', '31B', {}),
            ('31l', '31L', {}),
            ('xl', 'XL', dict(norm_intermediate_features=True)),
        )
        for form in ('cls', 'downstream')
    },
    **{
        f'slak_{arch[0]}_{form}': dict(type='SLaK', arch=arch)
        for arch in ('tiny', 'small', 'base')
        for form in ('cls', 'downstream')
    },
}


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def wrappers(state_dict):
    prefixed = {f'module.{key}': value for key, value in state_dict.items()}
    backbone = {f'module.backbone.{key}': value for key, value in state_dict.items()}
    return {
        'plain': (state_dict, {}),
        'model': ({'model': state_dict, 'epoch': 3}, {}),
        'model_ema': ({'model': {}, 'model_ema': state_dict}, dict(ema=True)),
        'state_dict': ({'state_dict': state_dict, 'meta': {}}, {}),
        'module': ({'model': prefixed}, {}),
        'backbone': ({'state_dict': backbone}, {}),
        'args': ({'model': state_dict, 'args': argparse.Namespace(lr=0.1)}, {}),
    }


@pytest.mark.parametrize('wrapper', wrappers({}))
@pytest.mark.parametrize('family', ['slak', 'replknet'])
def test_wrappers_and_prefixes(build, small, convert, family, wrapper):
    model, released = small(family)
    content, kwargs = wrappers(released)[wrapper]
    report, written = convert(content, arch=family, **kwargs)
    assert report.complete
    assert same(written['state_dict'], model.state_dict())
    build(written['meta']['backbone']).load_state_dict(written['state_dict'])
    assert written['meta']['source']['sha256'] == report.sha256
    others = {'epoch', 'args'} | ({'model'} if wrapper == 'model_ema' else set())
    assert set(report.dropped) == others & set(content)


def test_older_format_of_torch_save(small, save, tmp_path):
    model, released = small()
    source = save({'model': released}, _use_new_zipfile_serialization=False)
    convert_checkpoint(source, tmp_path / 'dst.pth')
    written = read_checkpoint(tmp_path / 'dst.pth')['state_dict']
    assert same(written, model.state_dict())


@pytest.mark.parametrize('family', ['slak', 'replknet'])
@pytest.mark.parametrize('dst', ['mm.pth', 'mm.safetensors'])
def test_there_and_back_bit_for_bit(small, save, tmp_path, family, dst):
    pytest.importorskip('safetensors')
    _, released = small(family)
    released = {
        key: value.half() if value.is_floating_point() else value
        for key, value in released.items()
    }
    source = save({'model': released})
    convert_checkpoint(source, tmp_path / dst)
    report = convert_checkpoint(tmp_path / dst, tmp_path / 'back.pth', official=True)
    assert report.complete
    back = torch.load(tmp_path / 'back.pth', weights_only=True)
    assert list(back) == ['model']
    assert {key: value.dtype for key, value in back['model'].items()} == {
        key: value.dtype for key, value in released.items()
    }
    assert same(*(dict(sorted(each.items())) for each in (back['model'], released)))
    if dst.endswith('.pth'):  # safetensors sorts
        assert list(back['model']) == list(released)
        again = tmp_path / 'again.pth'
        convert_checkpoint(source, again)
        assert again.read_bytes() == (tmp_path / dst).read_bytes()


def test_safetensors_in(small, tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    model, released = small()
    save_file(released, tmp_path / 'src.safetensors')
    convert_checkpoint(tmp_path / 'src.safetensors', tmp_path / 'dst.pth')
    written = torch.load(tmp_path / 'dst.pth', weights_only=True)['state_dict']
    assert written.keys() == model.state_dict().keys()
    assert all(torch.equal(written[k], v) for k, v in model.state_dict().items())
    # Each tensor is saved with its own memory, not with that of the whole file.
    size = sum(value.nbytes for value in released.values())
    assert (tmp_path / 'dst.pth').stat().st_size < 2 * size + 100_000


@pytest.mark.parametrize('family', ['slak', 'replknet'])
def test_classifier_and_merged(small, convert, family):
    merged = {'arch': dict(channels=[8, 16], depths=[1, 1], kernel_sizes=[11, 9])}
    if family == 'slak':
        merged['arch']['decomposed'] = False
    model, released = small(family, small_kernel_merged=True, **merged)
    assert any('lkb_reparam' in key for key in released)
    released = {key: v for key, v in released.items() if not key.startswith('norm')}
    released |= {'norm.weight': torch.ones(16), 'head.weight': torch.zeros(5, 16)}
    report, written = convert({'model': released})
    assert report.complete
    assert written['meta']['backbone']['small_kernel_merged'] is True
    assert list(report.dropped) == ['norm.weight', 'head.weight']
    assert list(report.initial) == (
        [f'norm{i}.{end}' for i in (0, 1) for end in ('weight', 'bias')]
        if family == 'slak'
        else []
    )
    result = model.load_state_dict(written['state_dict'], strict=False)
    assert result.missing_keys == list(report.initial)
    assert result.unexpected_keys == []


@pytest.mark.parametrize('name', MANIFESTS)
def test_full_sizes_are_recognised(shared, name):
    manifest = json.loads((shared / f'golden/manifests/{name}.json').read_text())
    family = detect_family(manifest)
    shapes = {
        key: tuple(shape)
        for key, shape in from_released(manifest, family).converted.items()
    }
    cfg = infer_backbone(shapes, family)
    assert cfg == MANIFESTS[name]
    expected = {
        key: tuple(value.shape)
        for key, value in build_backbone(cfg).state_dict().items()
    }
    missing = {key for key in expected if key not in shapes}
    assert shapes.items() <= expected.items()
    assert all(key.startswith('norm') for key in missing)
    assert not missing or name.endswith('cls')


@pytest.mark.parametrize('name', ['replknet31', 'slak51'])
@pytest.mark.parametrize('form', ['small', 'cls_small'])
@torch.no_grad()
def test_golden_features(build, shared, convert, name, form):
    golden = torch.load(shared / f'golden/{name}_{form}.pt', weights_only=True)
    report, written = convert(golden.get('checkpoint', golden['state_dict']))
    assert report.complete
    model = build(written['meta']['backbone'])
    model.load_state_dict(written['state_dict'], strict=not report.initial)
    pairs = (
        [('input', 'downstream_outputs')]
        if form == 'cls_small'
        else [(f'input{size}', f'outputs{size}') for size in ('', '_odd')]
    )
    for given, expected in pairs:
        for out, reference in zip(model(golden[given]), golden[expected], strict=True):
            torch.testing.assert_close(out, reference, atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_golden_averaged_weights(build, shared, convert):
    golden = torch.load(shared / 'golden/slak51_cls_small.pt', weights_only=True)
    report, written = convert(golden['checkpoint'], ema=True)
    assert 'model' in report.dropped
    assert report.densities == {}
    model = build(written['meta']['backbone'])
    model.load_state_dict(written['state_dict'], strict=False)
    for i in range(4):
        delattr(model, f'norm{i}')
    outs = model(golden['input'])
    for out, reference in zip(outs, golden['stage_outputs_ema'], strict=True):
        torch.testing.assert_close(out, reference, atol=5e-5, rtol=1e-4)


def test_density_of_sparse_weights(small, convert):
    _, released = small()
    for value in released.values():
        if value.ndim in (2, 4):
            value.view(-1)[::4] = 0
    report, _ = convert(released)
    assert report.density == pytest.approx(0.75, abs=0.01)
    assert min(report.densities.values()) > 0.7
    assert len(report.densities) == sum(v.ndim in (2, 4) for v in released.values())


def narrow(node, width=32):
    """Give a model's heads a few channels."""
    if isinstance(node, dict):
        return {key: narrow(value) for key, value in node.items()}
    if isinstance(node, list):
        return [narrow(value) for value in node]
    return width if node in (256, 512, 1024) and not isinstance(node, bool) else node


def whole_model(config, family, small):
    """A narrow model of a config and its checkpoint as older frameworks wrote it."""
    cfg = Config.fromfile(CONFIGS / config, import_custom_modules=False)
    pytest.importorskip(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    arch = dict(channels=[8] * 4, depths=[1] * 4, kernel_sizes=[9, 9, 7, 7])
    model = cfg.model.to_dict()
    backbone, model = model.pop('backbone'), narrow(model)
    model['backbone'] = backbone | dict(arch=arch, norm_cfg=dict(type='BN'))
    if 'neck' in model:
        model['neck']['in_channels'] = arch['channels']
    else:
        model['decode_head']['in_channels'] = arch['channels']
        model['auxiliary_head']['in_channels'] = arch['channels'][2]
    built = MODELS.build(ConfigDict(model))
    _, released = small(family, arch=arch, out_indices=(0, 1, 2, 3))
    heads = {
        key.replace('bbox_head.conv_', 'bbox_head.fcos_'): value
        for key, value in built.state_dict().items()
        if not key.startswith('backbone.')
    }
    backbone = {f'backbone.{key}': value for key, value in released.items()}
    meta = dict(
        mmseg_version='0.11.0', CLASSES=('wall', 'sky'), PALETTE=[[0, 1, 2], [3, 4, 5]]
    )
    return built, {'meta': meta, 'state_dict': backbone | heads, 'optimizer': {}}


@pytest.mark.parametrize(
    ('config', 'family'),
    [
        ('upernet_slak_t_ade20k.py', 'slak'),
        ('cascade_mask_rcnn_slak_t_coco.py', 'slak'),
        ('fcos_replknet_31b_coco.py', 'replknet'),
    ],
)
def test_whole_models_of_older_frameworks(small, convert, config, family):
    model, content = whole_model(config, family, small)
    report, written = convert(content)
    assert report.complete
    assert report.whole
    assert written['meta']['dataset_meta'] == dict(
        classes=['wall', 'sky'], palette=[(0, 1, 2), (3, 4, 5)]
    )
    model.load_state_dict(written['state_dict'])
    renamed = [key for key, old in report.converted.items() if 'fcos_' in old]
    assert len(renamed) == (6 if config.startswith('fcos') else 0)

    report, written = convert(content, prefix='')
    assert not any(key.startswith('backbone.') for key in written['state_dict'])
    model.backbone.load_state_dict(written['state_dict'])
    assert all('head' in reason for k, reason in report.dropped.items() if k[0] == 'n')


def test_whole_model_warm_starts_with_its_heads(small, convert):
    _, content = whole_model('upernet_slak_t_ade20k.py', 'slak', small)
    report, written = convert(content, warm_start='pelk')
    assert report.complete
    assert written['meta']['backbone']['type'] == 'PeLK'
    weights = written['state_dict']
    assert 'backbone.stages.0.position_embedding' in weights
    heads = {k: v for k, v in content['state_dict'].items() if 'head' in k}
    assert same({key: weights[key] for key in heads}, heads)


def test_two_names_for_one_tensor_of_a_head(small, convert):
    _, released = small()
    heads = ('bbox_head.fcos_cls.weight', 'bbox_head.conv_cls.weight', 'extra.weight')
    content = {name: torch.full((1,), float(i)) for i, name in enumerate(heads)}
    content |= {f'backbone.{name}': value for name, value in released.items()}
    report, _ = convert({'state_dict': content})
    assert report.unknown == list(heads[1:])
    _, written = convert({'state_dict': content}, strict=False)
    assert written['state_dict']['bbox_head.conv_cls.weight'] == 0
    # The backbone comes first, whatever the order of the source.
    assert list(written['state_dict'])[-1] == 'bbox_head.conv_cls.weight'


def test_whole_model_without_output_norms_is_damaged(small, convert):
    _, content = whole_model('upernet_slak_t_ade20k.py', 'slak', small)
    for name in [name for name in content['state_dict'] if '.norm' in name[:14]]:
        del content['state_dict'][name]
    report, _ = convert(content)
    assert report.missing == [
        f'norm{i}.{end}' for i in range(4) for end in ('weight', 'bias')
    ]


def test_this_packages_names_pass_through(small, convert):
    model, _ = small()
    whole = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    report, written = convert({'state_dict': whole}, prefix='')
    assert same(written['state_dict'], model.state_dict())
    report, written = convert(model.state_dict(), prefix='backbone.')
    assert same(written['state_dict'], whole)


def test_pelk_passes_through(build, convert, randomise):
    arch = dict(
        channels=[16, 24], depths=[1, 1], kernel_sizes=[31, 13], central_radius=2
    )
    cfg = dict(type='PeLK', arch=arch, out_indices=(0, 1), layer_scale_init_value=0)
    model = build(cfg)
    report, written = convert(model.state_dict(), arch='pelk')
    assert report.complete
    assert written['meta']['backbone'] == cfg
    with pytest.raises(CheckpointError, match='no released PeLK models'):
        convert(model.state_dict(), official=True)


@pytest.mark.parametrize(
    ('change', 'problem'),
    [
        (lambda d: d.pop('stages.1.1.gamma'), 'it lacks stages.1.1.gamma'),
        (lambda d: d.pop('norm1.weight'), 'it lacks norm1.weight'),
        (
            lambda d: d.update({'fc.weight': torch.ones(1)}),
            'nothing has a place for fc.weight',
        ),
        (
            lambda d: d.update({'stages.0.0.pwconv1.weight': torch.ones(8, 8)}),
            'stages.0.0.pwconv1.weight is (8, 8) where a SLaK of its size has (32, 8)',
        ),
    ],
)
def test_incomplete(small, convert, change, problem):
    _, released = small()
    change(released)
    report, written = convert(released)
    assert written is None
    assert not report.complete
    assert report.summarise_problems() == problem
    report, written = convert(released, strict=False)
    assert not report.complete
    assert len(written['state_dict']) >= len(released) - 1
    with pytest.raises(CheckpointError, match='PeLK starts from complete weights only'):
        convert(released, strict=False, warm_start='pelk')


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='replknet'), 'names are those of a slak model, not of replknet'),
        (dict(ema=True), 'has no model_ema; leave out --ema'),
        (dict(official=True), 'names are the released ones already'),
        (dict(official=True, warm_start='pelk'), 'no released PeLK names'),
    ],
)
def test_options_that_do_not_fit_the_source(small, convert, kwargs, message):
    with pytest.raises(CheckpointError, match=message):
        convert(small()[1], **kwargs)


@pytest.mark.parametrize('kind', ['RepLKNet', 'PeLK'])
def test_deployment_form_is_refused(build, convert, kind):
    arch = dict(channels=[8, 16], depths=[1, 2], kernel_sizes=[11, 9])
    if kind == 'PeLK':
        arch['central_radius'] = 2
    model = build(dict(type=kind, arch=arch, out_indices=(0, 1), deploy=True))
    with pytest.raises(CheckpointError, match=f'deployment form of a {kind}'):
        convert(model.state_dict())
