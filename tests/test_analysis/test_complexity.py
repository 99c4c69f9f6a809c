import pytest
import torch
from mmengine.config import Config
from torch import nn

from pelk_mm.analysis.complexity import (
    AS_PAPERS,
    Complexity,
    checkpoint_density,
    complexity,
    dense,
    format_complexity,
    paper_sparsity,
    total,
    uniform_density,
)
from pelk_mm.analysis.counting import count
from pelk_mm.analysis.from_config import build_on_meta, image_shape
from pelk_mm.backbones import PeLK, RepLKNet, SLaK


class Lone(nn.Module):
    """A backbone as `count` takes it."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


ARCH = dict(channels=[16], depths=[1], kernel_sizes=[51])
H, W = 64, 96


def on_meta(kind, **arch):
    with torch.device('meta'):
        return Lone(kind({**ARCH, **arch}, out_indices=[0]))


def count_multiply_adds(model, shape, formulas=()):
    """Multiply-adds by module in one way of counting."""
    counts = count(model, shape, (dict(formulas),))
    return {name: found for name, (found,) in counts.modules.items()}


def pointwise(pixels):
    """Stem and the two pointwise layers of a ConvNeXt block of 16 channels."""
    return pixels * (16 * 3 * 4 * 4 + 2 * 16 * 64)


def test_pelk_by_hand():
    model = on_meta(PeLK, central_radius=2)
    pixels = H * W // 16
    papers = count_multiply_adds(model, (H, W), AS_PAPERS)
    computed = count_multiply_adds(model, (H, W))
    mixer = 'backbone.stages.0.blocks.0.mixer.large.conv'
    assert papers[mixer] == pixels * 6 * 51**2
    assert computed[mixer] == pixels * 6 * 13**2
    # The positional embedding's rectangle sums are additions alone.
    assert computed['backbone'] == pointwise(pixels) + computed[mixer]
    assert papers['backbone'] == pointwise(pixels) + papers[mixer]


def test_slak_by_hand():
    pixels = H * W // 16
    counts = count_multiply_adds(on_meta(SLaK), (H, W))
    mixer = pixels * 16 * (2 * 51 * 5 + 5 * 5)
    assert counts['backbone.stages.0.blocks.0.mixer'] == mixer
    assert counts['backbone'] == pointwise(pixels) + mixer


def test_replknet_by_hand():
    pixels = H * W // 16
    counts = count_multiply_adds(on_meta(RepLKNet), (H, W))
    stem = 4 * pixels * 16 * (27 + 9 + 16) + pixels * 16 * 9
    blocks = pixels * 16 * (2 * 16 + 51**2 + 5**2 + 2 * 64)
    assert counts['backbone'] == stem + blocks


def test_density_scales_what_the_papers_count():
    model = on_meta(SLaK)
    full = complexity(model, (H, W))['backbone']
    half = complexity(model, (H, W), uniform_density(0.5))['backbone']
    assert full.nonzeros == full.parameters == half.parameters
    assert half.paper == full.paper / 2
    assert half.computed == full.computed == full.paper
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    assert half.nonzeros == (full.parameters + vectors) / 2


def test_zeros_of_a_checkpoint_are_counted():
    model = on_meta(SLaK)
    state = Lone(SLaK(ARCH, out_indices=[0])).state_dict()
    name = 'backbone.stages.0.blocks.0.pointwise_conv1.weight'
    state = {key: torch.ones_like(value) for key, value in state.items()}
    state[name][:16] = 0  # a quarter of the hidden layer
    pixels = H * W // 16
    whole = complexity(model, (H, W))['backbone']
    for checkpoint in (
        state,
        {f'module.{key}': value for key, value in state.items()},
        {key.removeprefix('backbone.'): value for key, value in state.items()},
    ):
        density = checkpoint_density(checkpoint, model)
        sparse = complexity(model, (H, W), density)['backbone']
        assert sparse.nonzeros == whole.parameters - 16 * 16
        assert sparse.paper == whole.paper - pixels * 16 * 16


def test_checkpoint_of_another_model_is_refused():
    state = Lone(SLaK(dict(ARCH, channels=[8]), out_indices=[0])).state_dict()
    with pytest.raises(
        ValueError, match=r'\(16, 3, 4, 4\) in the model, \(8, 3, 4, 4\)'
    ):
        checkpoint_density(state, on_meta(SLaK))
    with pytest.raises(ValueError, match='weight has shape .* none in the checkpoint'):
        checkpoint_density({}, on_meta(SLaK))


@pytest.mark.parametrize('sparsity', [-0.1, 1.0])
def test_bad_sparsity(sparsity):
    with pytest.raises(ValueError, match='is not in'):
        uniform_density(sparsity)


def test_sparsity_is_that_of_our_backbones_wherever_they_are():
    model = nn.Module()
    model.student = on_meta(SLaK)
    assert paper_sparsity(model) == 0.4
    assert paper_sparsity(on_meta(RepLKNet)) == 0
    assert paper_sparsity(nn.Conv2d(3, 8, 3)) == 0
    density = uniform_density(0.4, model)
    weight = model.student.backbone.downsample_layers[0][0].weight
    assert density('student.backbone.a.weight', weight) == pytest.approx(0.6)
    assert density('student.neck.weight', weight) == 1


def test_what_is_not_counted_is_named_and_the_sum_is_marked():
    sizes = {
        'backbone': Complexity(10**6, 1e6, 2e9, 3e9),
        'head': Complexity(10**6, 1e6, not_counted=('no kernel',)),
        'auxiliary_head': Complexity(10**6, 1e6),
        'queries': Complexity(10**6, 1e6),
    }
    table = format_complexity(sizes)
    assert '0.00 G' not in table
    assert '| head | 1.00 M | 1.00 M | not counted (1) | not counted (1) |' in table
    assert '| auxiliary_head | 1.00 M | 1.00 M | in training only |' in table
    assert '| queries | 1.00 M | 1.00 M | 0 | 0 |' in table
    assert '| all | 4.00 M | 4.00 M | >= 2.00 G | >= 3.00 G |' in table
    assert table.splitlines()[-1] == '(1) head: no kernel'
    del sizes['head']
    assert '| all | 3.00 M | 3.00 M | 2.00 G | 3.00 G |' in format_complexity(sizes)


def test_heads_of_a_cascade(request):
    configs = request.config.rootpath / 'configs'
    cfg = Config.fromfile(configs / 'cascade_mask_rcnn_replknet_31b_coco.py')
    assert image_shape(cfg) == (800, 1280)
    sizes = complexity(build_on_meta(cfg), (800, 1280), dense)
    assert list(sizes) == [
        'backbone',
        'neck',
        'rpn_head',
        'roi_head.bbox_head',
        'roi_head.mask_head',
    ]
    # Three heads: four 3 x 3 convolutions of 256 channels on 1000 regions of 7 x 7,
    # a layer of 1024, and 81 classes and 80 boxes.
    boxes = 49 * 4 * 256 * 256 * 9 + 49 * 256 * 1024 + 1024 * (81 + 320)
    assert sizes['roi_head.bbox_head'].computed == 3 * 1000 * boxes
    # On 100 regions of 14 x 14 four convolutions, a deconvolution and the 80 masks.
    masks = 196 * (4 * 256 * 256 * 9 + 256 * 256 * 4) + 784 * 256 * 80
    assert sizes['roi_head.mask_head'].computed == 3 * 100 * masks
    whole = total(sizes)
    assert whole.parameters == sum(size.parameters for size in sizes.values())
    assert whole + Complexity() == whole
