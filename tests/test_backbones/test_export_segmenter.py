"""Whole segmenters exported with torch's operators alone."""

import pytest
import torch
from mmengine.registry import init_default_scope
from torch import nn

from pelk_mm import ops

SIZES = dict(channels=(8, 8, 16, 16), depths=(1, 1, 1, 1), kernel_sizes=(15, 13, 11, 7))
HEADS = {
    'UPerHead': dict(in_channels=[8, 8, 16, 16], in_index=[0, 1, 2, 3]),
    'FCNHead': dict(in_channels=16, in_index=3, num_convs=1),
}


class Logits(nn.Module):
    """As docs/deploy.md has it."""

    def __init__(self, segmenter):
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images):
        return self.segmenter(images, mode='tensor')


@pytest.fixture(params=HEADS)
def logits(request):
    models = pytest.importorskip('mmseg.registry').MODELS
    init_default_scope('mmseg')
    head = dict(HEADS[request.param], type=request.param, channels=8, num_classes=3)
    model = models.build(
        dict(
            type='EncoderDecoder',
            backbone=dict(type='PeLK', arch=dict(SIZES, central_radius=1)),
            decode_head=dict(head, align_corners=False),
            test_cfg=dict(mode='whole'),
        )
    )
    return request.param, Logits(model).eval()


@pytest.mark.long
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@torch.no_grad()
def test_segmenter(logits):
    head, model = logits
    names = {0: 'batch', 2: 'height', 3: 'width'}
    if head == 'UPerHead':  # its pooling takes the size of the images for granted
        names = {0: 'batch'}
    sizes = {
        axis: torch.export.Dim(name, min=64 if axis else 1, max=512)
        for axis, name in names.items()
    }
    images = torch.randn(2, 3, 64, 96)
    with ops.plain():
        program = torch.export.export(model, (images,), dynamic_shapes=(sizes,))
        traced = torch.jit.trace(model, images)
    operators = {
        node.target
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    }
    assert {operator.namespace for operator in operators} == {'aten'}
    others = [(1, 3, 64, 96), (3, 3, 80, 64)]
    for shape in (images.shape, *others[: len(sizes)]):
        images = torch.randn(shape)
        wanted = model(images)
        assert wanted.shape[:2] == (shape[0], 3)
        for exported in (program.module(), traced):
            torch.testing.assert_close(exported(images), wanted, rtol=1e-4, atol=1e-4)
