"""Taps that the maps of the training were too small for."""

import pytest
import torch
from mmengine.config import Config

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.conversion.outer_taps import cut_grid, trim_kernels, used_sizes
from pelk_mm.layers import make_sharing_grid

#: On maps of 24, 12, 6 and 3 pixels the kernels of stages 1 and 2 are too large.
ARCH = dict(channels=[8, 12, 16, 24], depths=[1, 2, 3, 1], kernel_sizes=[15, 39, 13, 5])
MODELS = {
    'pelk': dict(type='PeLK', arch=ARCH | dict(central_radius=2)),
    'pelk_small': dict(
        type='PeLK',
        arch=ARCH | dict(central_radius=2, small_kernel=3),
        norm_cfg=dict(type='BN'),
    ),
    'slak': dict(type='SLaK', arch=ARCH | dict(small_kernel=3)),
    'slak_dense': dict(type='SLaK', arch=ARCH | dict(small_kernel=3, decomposed=False)),
    'replknet': dict(type='RepLKNet', arch=ARCH | dict(small_kernel=3)),
    'merged': dict(
        type='RepLKNet', arch=ARCH | dict(small_kernel=3), small_kernel_merged=True
    ),
}


@pytest.fixture(autouse=True, scope='module')
def _one_thread(one_thread):
    """For all tests of this file."""


@pytest.fixture(params=MODELS)
def model(request, build, randomise):
    """Each family, with 40 % of its weights at zero."""
    model = randomise(build(MODELS[request.param]))
    for parameter in model.parameters():
        if parameter.ndim in (2, 4):
            parameter.data *= torch.rand_like(parameter) > 0.4
        if parameter.ndim == 3:  # the positional embedding, so that it counts
            parameter.data.normal_()
    return model


def test_what_images_of_224_use():
    """RepLKNet's kernels are no larger, PeLK's and SLaK's are in one stage."""
    for kind, arch in (('PeLK', 'tiny'), ('SLaK', 'tiny'), ('RepLKNet', '31B')):
        sizes = used_sizes(dict(type=kind, arch=arch), 224)
        assert sizes == [111, 55, 27, 13]
    assert used_sizes(dict(type='PeLK', arch='tiny-101'), 384) == [191, 95, 47, 23]


@pytest.mark.parametrize('crop', [False, True])
def test_what_the_training_saw_stays_the_same(model, convert, build, crop):
    outer_taps = 'crop' if crop else 'zero'
    report, written = convert(
        {'state_dict': model.state_dict()}, outer_taps=outer_taps, trained_at=96
    )
    assert report.complete
    stages = ['stage 1', 'stage 2']
    if report.family == 'pelk' and not crop:
        stages.pop()  # its outer cells are used in part
    assert [note.partition(':')[0] for note in report.notes] == stages
    sizes = report.backbone['arch']['kernel_sizes']
    assert sizes == ([15, 23, 11, 5] if crop else [15, 39, 13, 5])
    trimmed = build(report.backbone)
    trimmed.load_state_dict(written['state_dict'])
    with torch.no_grad():
        for height, width in ((96, 96), (57, 80)):
            x = torch.rand(1, 3, height, width)
            for ours, before in zip(trimmed(x), model(x), strict=True):
                assert (ours - before).abs().max() < 1e-4 * before.abs().max()
        x = torch.rand(1, 3, 160, 160)
        assert not torch.allclose(trimmed(x)[-1], model(x)[-1], rtol=0.01)


def test_zeroed_taps_are_zero(model, convert):
    report, written = convert(
        {'state_dict': model.state_dict()}, outer_taps='zero', trained_at=96
    )
    kept = 33 if report.family == 'pelk' else 23  # whole cells
    assert f'are zero outside of {kept} x {kept}' in report.notes[0]
    kernels = 0
    for name, before in model.state_dict().items():
        after = written['state_dict'][name]
        if '.mixer.' not in name or before.ndim < 3 or 'stages.1.' not in name:
            if not name.startswith('stages.2.') and 'position' not in name:
                assert torch.equal(after, before)
            continue
        cells = make_sharing_grid(39, 2) if report.family == 'pelk' else [1] * 39
        outside = (
            sum(n > 0 for n in cells) - sum(n > 0 for n in cut_grid(cells, 23))
        ) // 2
        for axis in (-2, -1):
            if after.shape[axis] == len(cells):
                rim = torch.arange(len(cells))
                rim = rim[(rim < outside) | (rim >= len(cells) - outside)]
                assert not after.index_select(axis, rim).count_nonzero()
                kernels += 1
    assert kernels


def test_grids_are_cut_as_their_rule_would_make_them():
    for size, used, radius in ((47, 27, 2), (51, 27, 2), (67, 27, 3), (67, 47, 3)):
        cut = [n for n in cut_grid(make_sharing_grid(size, radius), used) if n]
        assert tuple(cut) == make_sharing_grid(used, radius)


def test_cells_that_are_partly_used_stay(build):
    cfg = MODELS['pelk']
    model = build(cfg)
    assert model.stages[1].sharing_grid[:3] == (3, 8, 4)
    assert cut_grid(model.stages[1].sharing_grid, 23)[:3] == [0, 3, 4]
    name = 'stages.1.blocks.0.mixer.large.conv.weight'
    before = model.state_dict()[name]
    after = trim_kernels(model.state_dict(), cfg, 96, crop=False).tensors[name]
    assert torch.equal(after[..., 1:-1, 1:-1], before[..., 1:-1, 1:-1])
    assert after[..., 1:-1, 1:-1].count_nonzero() == after.count_nonzero()
    # Of the 13 x 13 kernels every cell is used, at least in part.
    assert not [
        n
        for n in trim_kernels(model.state_dict(), cfg, 96, False).tensors
        if 'stages.2.' in n
    ]


def test_nothing_to_do(small, convert):
    model, _ = small()
    source = {'state_dict': model.state_dict()}
    report, written = convert(source, outer_taps='crop', trained_at=224)
    assert report.notes == ['images of 224 x 224 use all taps of its kernels']
    assert all(
        torch.equal(written['state_dict'][name], t)
        for name, t in model.state_dict().items()
    )


@pytest.mark.parametrize(
    ('how', 'message'),
    [
        (dict(outer_taps='crop', trained_at=16), 'leave nothing for stage'),
        (dict(outer_taps='crop', trained_at=32), 'fewer than its small kernels have'),
        (dict(outer_taps='cut'), "outer_taps 'cut' is not one of keep, zero, crop"),
    ],
)
def test_refused(build, convert, how, message):
    model = build(MODELS['slak'])
    with pytest.raises(CheckpointError, match=message):
        convert({'state_dict': model.state_dict()}, **how)


def test_config_of_a_cropped_model(build, convert):
    cfg = MODELS['slak']
    weights = {f'backbone.{n}': t for n, t in build(cfg).state_dict().items()}
    weights['decode_head.weight'] = torch.ones(2)
    text = Config(dict(model=dict(type='EncoderDecoder', backbone=cfg))).pretty_text
    source = {'state_dict': weights, 'meta': {'cfg': text}}
    report, written = convert(source, outer_taps='crop', trained_at=96)
    cfg = Config.fromstring(written['meta']['cfg'], '.py')
    assert cfg.model.backbone.arch.kernel_sizes == [15, 23, 11, 5]
    assert dict(cfg.model.backbone) == report.backbone
