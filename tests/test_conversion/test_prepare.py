"""`prepare_for_inference`: the same predictions from the same object, faster."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseTTAModel, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import pelk_mm
from pelk_mm.backbones import PeLK
from pelk_mm.layers import batch_norms

CONFIGS = Path(__file__).parents[2] / 'configs'
SEGMENTERS = {
    kind: f'upernet_{kind}_ade20k.py' for kind in ('pelk_t', 'slak_t', 'replknet_31b')
}
DETECTORS = {
    kind: f'cascade_mask_rcnn_{kind}_coco.py'
    for kind in ('pelk_t', 'slak_t', 'replknet_31b')
}
BFLOAT16 = 0.05  # of the largest value

prepare = pelk_mm.prepare_for_inference


@pytest.fixture(autouse=True, scope='module')
def _one_thread(one_thread):
    """For all tests of this file."""


def as_fcn(model):
    """Put FCN's head in the place of UPerHead's."""
    model.decode_head = dict(
        model.auxiliary_head, num_convs=2, concat_input=True, in_channels=16
    )
    model.auxiliary_head = None


def as_cascade(model):
    """Make a segmenter one of two heads, the second of which reads the first's."""
    first = dict(model.auxiliary_head)
    second = dict(first, type='OCRHead', ocr_channels=8, in_channels=16, in_index=2)
    for key in ('num_convs', 'concat_input'):
        del second[key]
    model.update(type='CascadeEncoderDecoder', num_stages=2, auxiliary_head=None)
    model.decode_head = [first, second]


def as_mask_rcnn(model):
    """Make Cascade Mask R-CNN a Mask R-CNN, with a GroupNorm in its mask head."""
    model.type = 'MaskRCNN'
    head = model.roi_head
    head.type = 'StandardRoIHead'
    for key in ('num_stages', 'stage_loss_weights'):
        del head[key]
    head.bbox_head = head.bbox_head[0]
    head.mask_head.norm_cfg = dict(type='GN', num_groups=4)
    model.train_cfg.rcnn = model.train_cfg.rcnn[0]


@pytest.fixture(scope='module')
def build(narrow, randomise, tmp_path_factory):
    """Builds a narrow model of one of our configs, its head changed by a function."""

    def run(config, change=None):
        cfg = Config.fromfile(CONFIGS / config)
        cfg = narrow(cfg, 'prepared', tmp_path_factory.getbasetemp())
        cfg.model.backbone.init_cfg = None
        if change is not None:
            change(cfg.model)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        return randomise(revert_sync_batchnorm(model)).eval()

    return run


@pytest.fixture
def data():
    """Two images of odd sizes as a data loader gives them to segmenters."""
    from mmseg.structures import SegDataSample

    images = [torch.randint(0, 256, (3, 70, 91), dtype=torch.uint8) for _ in range(2)]
    known = dict(img_shape=(70, 91), ori_shape=(70, 91), pad_shape=(70, 91))
    samples = [SegDataSample(metainfo=known) for _ in images]
    return dict(inputs=images, data_samples=samples)


def largest_difference(found, expected):
    """Of tensors to others, over the largest value of those."""
    found, expected = (
        [x for x in torch.utils._pytree.tree_leaves(each) if torch.is_tensor(x)]
        for each in (found, expected)
    )
    assert len(found) == len(expected) > 0
    return max(
        ((a - b).abs().max() / b.abs().max()).item()
        for a, b in zip(found, expected, strict=True)
    )


def logits(model, data):
    with torch.no_grad():
        samples = model.test_step(copy.deepcopy(data))
    return [sample.seg_logits.data for sample in samples]


@pytest.mark.parametrize(
    ('kind', 'change'),
    [
        *((kind, None) for kind in SEGMENTERS),
        ('pelk_t', as_fcn),
        ('slak_t', as_cascade),
        ('replknet_31b', as_fcn),
    ],
)
def test_segmenters(build, data, kind, change):
    model = build(SEGMENTERS[kind], change)
    expected = logits(model, data)
    low = copy.deepcopy(model)
    norms = len(list(batch_norms(model)))
    assert prepare(model) is model
    found = logits(model, data)
    assert largest_difference(found, expected) < 1e-5
    assert model.backbone.deploy
    assert norms > len(list(batch_norms(model.decode_head))) == 0
    assert not any(p.requires_grad for p in model.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(found, logits(model, data), strict=True)
    )

    prepare(low, torch.bfloat16)
    found = logits(low, data)
    assert {each.dtype for each in found} == {torch.float32}
    assert 1e-4 < largest_difference(found, expected) < BFLOAT16


def heads(model, images):
    """What the heads of a detector compute of regions that do not depend on it."""
    maps = model.extract_feat(images)
    rois = torch.tensor([[0, 3, 5, 60, 70], [1, 10, 0, 90, 40.0]])
    found = [maps, model.rpn_head(maps)]
    head = model.roi_head
    for stage in range(getattr(head, 'num_stages', 1)):
        first = (stage,) if hasattr(head, 'num_stages') else ()
        found.append(list(head._bbox_forward(*first, maps, rois).values()))
        found.append(list(head._mask_forward(*first, maps, rois).values()))
    return found


@pytest.mark.parametrize(
    ('kind', 'change'),
    [*((kind, None) for kind in DETECTORS), ('slak_t', as_mask_rcnn)],
)
def test_detectors(build, kind, change):
    model = build(DETECTORS[kind], change)
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = heads(model, images)
        low = prepare(copy.deepcopy(model), 'bfloat16')
        prepare(model)
        found = heads(model, images.contiguous(memory_format=torch.channels_last))
        assert largest_difference(found, expected) < 1e-5
        found = heads(low, images)
    assert {x.dtype for x in torch.utils._pytree.tree_leaves(found)} == {torch.float32}
    assert 1e-4 < largest_difference(found, expected) < BFLOAT16
    assert not list(batch_norms(model))
    groups = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert bool(groups) is (change is as_mask_rcnn)


@pytest.mark.parametrize(
    ('kind', 'prepared'), [('pelk_t', False), ('slak_t', False), ('replknet_31b', True)]
)
def test_regions_are_of_the_maps(build, kind, prepared):
    """mmcv's RoIAlign reads channels_last as if it were contiguous."""
    model = build(DETECTORS[kind])
    if prepared:
        prepare(model)
    rois = torch.tensor([[0, 3, 5, 60, 70], [1, 10, 0, 90, 40.0]])
    with torch.no_grad():
        maps = model.extract_feat(torch.randn(2, 3, 96, 96))[:4]
        extract = model.roi_head.bbox_roi_extractor[0]
        found = extract(maps, rois)
        expected = extract([each.contiguous() for each in maps], rois)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ('kind', 'size'),
    [('pelk_t', (70, 91)), ('slak_t', (33, 200)), ('replknet_31b', (65, 64))],
)
def test_backbones_alone(build, kind, size):
    backbone = build(SEGMENTERS[kind]).backbone
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = backbone(images)
    prepare(backbone)
    found = backbone(images)  # without no_grad
    assert largest_difference(found, expected) < 1e-5
    assert not any(x.requires_grad for x in found)
    with torch.autocast('cpu', torch.bfloat16):
        again = backbone(images)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_bfloat16_is_what_autocast_computes(build):
    backbone = build(SEGMENTERS['pelk_t']).backbone
    backbone.switch_to_deploy()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        expected = [x.float() for x in backbone(images)]
    weight = backbone.stages[0].blocks[0].pointwise_conv1.weight
    assert weight.dtype is torch.float32
    found = prepare(backbone, torch.bfloat16)(images)
    assert largest_difference(found, expected) < BFLOAT16 / 4


def test_a_second_call_does_nothing(build, data):
    model = prepare(build(SEGMENTERS['pelk_t']))
    modules = dict(model.named_modules())
    before = logits(model, data)
    assert prepare(model, 'float32') is model
    assert dict(model.named_modules()) == modules
    assert largest_difference(logits(model, data), before) == 0
    with pytest.raises(ValueError, match='prepared already, for float32; build'):
        prepare(model, torch.bfloat16)
    whole = build(SEGMENTERS['pelk_t'])
    prepare(whole.backbone)
    with pytest.raises(ValueError, match='backbone of this EncoderDecoder is prep'):
        prepare(whole)


def test_it_stays_what_it_was(build, data):
    model = build(SEGMENTERS['pelk_t'])
    kinds = {name: type(m).__mro__[-5:] for name, m in model.named_children()}
    prepare(model)
    assert type(model).__name__ == 'EncoderDecoder'
    assert isinstance(model.backbone, PeLK)
    assert {n: type(m).__mro__[-5:] for n, m in model.named_children()} == kinds
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert max(x.abs().max() for x in logits(twin, data)) > 0
    model.eval()
    assert model.data_preprocessor is not twin.data_preprocessor


def test_no_training_after_it(build):
    model = prepare(build(SEGMENTERS['pelk_t']))
    for module in (model, model.backbone, model.decode_head):
        with pytest.raises(RuntimeError, match='is prepared for inference: its norms'):
            module.train()
        assert not module.training


def test_no_model_in_training(build):
    model = build(SEGMENTERS['pelk_t']).train()
    model.decode_head.conv_seg.bias.grad = torch.zeros(150)
    with pytest.raises(RuntimeError, match=r'decode_head.conv_seg.bias has a gradien'):
        prepare(model)
    assert model.training
    assert not model.backbone.deploy
    model.zero_grad()
    assert not prepare(model).training


def test_norms_that_cannot_be_folded_leave_everything_as_it_was():
    arch = dict(channels=[8, 8], depths=[1, 1], kernel_sizes=[5, 5])
    backbone = pelk_mm.backbones.SLaK(
        arch=arch, out_indices=(0, 1), norm_cfg=dict(type='GN', num_groups=2)
    ).train()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), backbone).requires_grad_(True)
    with pytest.raises(RuntimeError, match='is a GroupNorm; only a BatchNorm can be'):
        prepare(model)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize('dtype', [torch.float16, torch.float64, 'half', None, 32])
def test_other_data_types(build, dtype):
    model = build(SEGMENTERS['pelk_t'])
    with pytest.raises(ValueError, match='choose float32 or bfloat16'):
        prepare(model, dtype)
    assert not model.backbone.deploy


def test_what_is_no_model_of_ours(build):
    class Inferencer:
        model = nn.Identity()

    class Other(nn.Module):
        backbone = nn.Conv2d(3, 3, 1)

    with pytest.raises(TypeError, match='give the Inferencer.model'):
        prepare(Inferencer())
    with pytest.raises(TypeError, match='dict is no torch module'):
        prepare({})
    with pytest.raises(TypeError, match='this Other has Conv2d'):
        prepare(Other())
    with pytest.raises(TypeError, match='this Conv2d has none'):
        prepare(nn.Conv2d(3, 3, 1))


def test_augmented_tests(build):
    class Both(BaseTTAModel):
        def merge_preds(self, data_samples_list):
            return data_samples_list

    model = Both(build(SEGMENTERS['pelk_t']))
    prepare(model, torch.bfloat16)
    assert model.module.prepared is model.module.decode_head.prepared
    assert model.module.decode_head.conv_seg.weight.dtype is torch.bfloat16


def test_layers_that_a_model_calls_by_itself(build):
    model = prepare(build(SEGMENTERS['pelk_t']), torch.bfloat16)
    x = torch.randn(1, 16, 8, 8)
    assert model.decode_head.conv_seg(x).dtype is torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize('kind', SEGMENTERS)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_compiled(build, data, kind, dtype):
    model = build(SEGMENTERS[kind])
    expected = logits(model, data)
    prepare(model, dtype, compile=True)
    assert model.prepared == (getattr(torch, dtype), True)
    bound = 1e-5 if dtype == 'float32' else BFLOAT16
    assert largest_difference(logits(model, data), expected) < bound
    torch._dynamo.utils.counters.clear()
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        model.backbone(images)
        graphs = torch._dynamo.utils.counters['stats']['unique_graphs']
        for size in ((64, 128), (160, 96), (71, 83)):
            model.backbone(torch.randn(1, 3, *size))
    # One for all other sizes.
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] <= graphs + 1
