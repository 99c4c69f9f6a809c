import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from pelk_mm.analysis.counting import count
from pelk_mm.analysis.from_config import build_on_meta
from pelk_mm.engine.launch import find_tool

WIDTHS = [8, 16, 24, 32]
BACKBONE = dict(
    type='PeLK',
    arch=dict(
        channels=WIDTHS,
        depths=[1, 1, 1, 1],
        kernel_sizes=[51, 49, 47, 13],
        central_radius=2,
    ),
)


class Head(nn.Module):
    """Eight channels to two, by a layer of its own."""

    def __init__(self, read=None):
        super().__init__()
        self.conv = nn.Conv2d(8, 2, 1, bias=False)
        self.read = read

    def forward(self, x):
        if self.read:
            self.read(x)
        return self.conv(x)

    def loss(self, x):
        assert self(x).isfinite().all().item()


class Toy(BaseModel):
    """A model whose first head may fail, and whose second one comes after it."""

    def __init__(self, read=None, run=None):
        super().__init__()
        self.backbone = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.first_head = Head(read)
        self.second_head = Head()
        self.auxiliary_head = nn.ModuleList([Head(), Head()])
        self.queries = nn.Embedding(5, 8)
        self.run = run

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(inputs)
        outs = [self.first_head.forward(x), self.second_head(x)]
        if self.run:
            self.run(self, x)
        return outs


PIXELS = 32 * 48
BACK, HEAD = PIXELS * 4 * 8 * 9, PIXELS * 8 * 2


def counted(model):
    found = count(model, (32, 48))
    return {name: each[0] for name, each in found.components.items()}, found


def test_forward_pass_of_the_model_is_counted_by_component():
    components, found = counted(Toy())
    assert components == dict(backbone=BACK, first_head=HEAD, second_head=HEAD)
    assert found.problems == {}
    assert found.elsewhere == [0]
    assert found.modules['first_head.conv'] == [HEAD]


def test_component_that_needs_values_is_named_and_the_rest_counted():
    components, found = counted(Toy(read=lambda x: x.nonzero()))
    assert components == dict(backbone=BACK, second_head=HEAD)
    assert found.problems == {
        'first_head': 'first_head (Head): aten::nonzero needs values, not shapes alone'
    }
    assert found.elsewhere == [0]


def test_component_that_is_left_out_is_named():
    model = Toy()
    model.third_head = Head()
    _, found = counted(model)
    assert found.problems == {'third_head': 'the forward pass of Toy leaves it out'}


def test_list_of_which_some_ran_is_not_counted():
    def run(model, x):
        model.stages[0](x)
        raise RuntimeError('no second stage')

    model = Toy(run=run)
    model.stages = nn.ModuleList([Head(), nn.Conv2d(9, 2, 1)])
    components, found = counted(model)
    assert components == dict(backbone=BACK, first_head=HEAD, second_head=HEAD)
    assert found.problems['stages'].endswith('stops before: no second stage')
    assert found.elsewhere == [0]


def test_loss_in_the_forward_pass_is_not_counted():
    components, _ = counted(Toy(run=lambda model, x: model.first_head.loss(x)))
    assert components['first_head'] == HEAD


def test_what_no_component_does_and_nested_calls_are_counted_once():
    def run(model, x):
        torch.einsum('bchw,cd->bdhw', x, model.queries.weight.mT)
        model.outer(x)

    class Outer(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.mix = nn.Conv2d(8, 8, 1, bias=False)
            self.head = [head]  # of another component

        def forward(self, x):
            return self.head[0](self.mix(x))

    model = Toy(run=run)
    model.outer = Outer(model.second_head)
    components, found = counted(model)
    assert components['outer'] == PIXELS * 8 * 8
    assert components['second_head'] == 2 * HEAD
    assert found.elsewhere == [PIXELS * 8 * 5]


def test_model_is_as_it_was():
    model = Toy().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    count(model, (32, 48))
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled() is fast
    assert not [m for m in model.modules() if 'forward' in vars(m)]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


# ------------------------------------------------------------------ mm's models


def build(framework, name, change):
    """A model of a framework's own config with a narrow backbone of ours."""
    folder = find_tool(framework, 'train').parents[1] / 'configs'
    cfg = Config.fromfile(folder / f'{name}.py')
    cfg.model.pop('pretrained', None)
    cfg.model.backbone = BACKBONE | change.pop('backbone', {})
    cfg.merge_from_dict({f'model.{key}': value for key, value in change.items()})
    return build_on_meta(cfg)


FPN = {'neck.in_channels': WIDTHS}
LAST = {
    'neck.in_channels': WIDTHS[3:],
    'backbone': dict(out_indices=[3]),
    'encoder.num_layers': 1,
    'decoder.num_layers': 1,
}


def mask2former(head):
    """Its head with one layer of each kind."""
    return {
        f'{head}.in_channels': WIDTHS,
        f'{head}.pixel_decoder.encoder.num_layers': 1,
        f'{head}.transformer_decoder.num_layers': 1,
    }


AUX = dict(type='FCNHead', in_channels=24, in_index=2, channels=8, num_classes=3)
OCR = dict(in_channels=32, in_index=3, channels=8, num_classes=3)

DETECTORS = {
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco': FPN,
    'htc/htc_r50_fpn_1x_coco': FPN,
    'yolact/yolact_r50_1xb8-55e_coco': FPN,
    'rpn/rpn_r50_fpn_1x_coco': FPN,
    'detr/detr_r50_8xb2-150e_coco': LAST,
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco': mask2former('panoptic_head'),
}
MORE_DETECTORS = {
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco': FPN,
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco': FPN,
    'ms_rcnn/ms-rcnn_r50-caffe_fpn_1x_coco': FPN,
    'guided_anchoring/ga-faster-rcnn_r50-caffe_fpn_1x_coco': FPN,
    'retinanet/retinanet_r50_fpn_1x_coco': FPN,
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': FPN,
    'atss/atss_r50_fpn_1x_coco': FPN,
    'solo/solo_r50_fpn_1x_coco': FPN,
    'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance': FPN,
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco': FPN,
    'dino/dino-4scale_r50_8xb2-12e_coco': {
        'neck.in_channels': WIDTHS[1:],
        'backbone': dict(out_indices=[1, 2, 3]),
    },
    'maskformer/maskformer_r50_ms-16xb1-75e_coco': {
        'panoptic_head.in_channels': WIDTHS
    },
}
SEGMENTERS = {
    'ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024': {
        'decode_head': [
            dict(type='FCNHead', **OCR),
            dict(type='OCRHead', ocr_channels=8, **OCR),
        ]
    },
    'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512': FPN,
    'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512': mask2former('decode_head'),
}
MORE_SEGMENTERS = {
    'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512': {
        'decode_head.in_channels': WIDTHS
    },
    'upernet/upernet_r50_4xb4-160k_ade20k-512x512': {
        'decode_head.in_channels': WIDTHS,
        'auxiliary_head': [AUX, AUX],
    },
}


@pytest.mark.parametrize(
    ('framework', 'name', 'change'),
    [
        *(('mmdet', *each) for each in DETECTORS.items()),
        *(('mmseg', *each) for each in SEGMENTERS.items()),
        *(
            pytest.param('mmdet', *each, marks=pytest.mark.slow)
            for each in MORE_DETECTORS.items()
        ),
        *(
            pytest.param('mmseg', *each, marks=pytest.mark.slow)
            for each in MORE_SEGMENTERS.items()
        ),
    ],
    ids=lambda value: value.partition('/')[0] if isinstance(value, str) else '',
)
def test_every_kind_of_model_is_counted(framework, name, change):
    pytest.importorskip(framework)
    found = count(build(framework, name, dict(change)), (128, 160))
    assert found.problems == {}
    assert found.elsewhere == [0]
    heads = [each for each in found.components if each.endswith('head')]
    assert heads
    for head in heads:
        assert found.components[head] > [0]


def test_mask_rcnn_by_hand():
    pytest.importorskip('mmdet')
    name = 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco'
    found = count(build('mmdet', name, dict(FPN)), (128, 160)).components
    levels = sum(128 * 160 // 4**i for i in (2, 3, 4, 5)) + 2 * 3
    assert found['rpn_head'] == [levels * 256 * (256 * 9 + 3 + 12)]
    fully = 49 * 256 * 1024 + 1024 * 1024 + 1024 * (81 + 320)
    assert found['roi_head.bbox_head'] == [1000 * fully]
    masks = 196 * (4 * 256 * 256 * 9 + 256 * 256 * 4) + 784 * 256 * 80
    assert found['roi_head.mask_head'] == [100 * masks]


@pytest.mark.parametrize('channels', [1, 4])
def test_images_have_the_channels_of_the_first_convolution(channels):
    model = nn.Module()
    with DefaultScope.overwrite_default_scope('mmengine'), torch.device('meta'):
        model.backbone = MODELS.build(BACKBONE | dict(in_channels=channels))
    stem = 'backbone.downsample_layers.0.0'
    found = count(model, (32, 48)).modules[stem]
    assert found == [32 * 48 // 16 * 8 * channels * 16]
