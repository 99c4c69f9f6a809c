"""Stems for images of other channels."""

import pytest
import torch
import torch.nn.functional as F

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.conversion.stem import adapt_stem


@pytest.mark.parametrize(('old', 'new'), [(3, 4), (3, 1), (3, 8), (4, 3), (1, 3)])
def test_same_from_images_of_equal_channels(old, new):
    weight = torch.randn(5, old, 3, 3)
    adapted = adapt_stem(weight, new)
    assert adapted.shape == (5, new, 3, 3)
    assert adapted.dtype == weight.dtype
    image = torch.randn(1, 1, 7, 7)
    before = F.conv2d(image.expand(-1, old, -1, -1), weight)
    after = F.conv2d(image.expand(-1, new, -1, -1), adapted)
    torch.testing.assert_close(after, before)


def test_known_channels_keep_their_directions():
    weight = torch.randn(2, 3, 1, 1)
    adapted = adapt_stem(weight, 4)
    torch.testing.assert_close(adapted[:, :3] * 4 / 3, weight)
    torch.testing.assert_close(adapted[:, 3] * 4 / 3, weight.mean(1))
    fewer = adapt_stem(weight, 2)
    torch.testing.assert_close(
        fewer - weight[:, :2], weight[:, 2:].expand(-1, 2, -1, -1) / 2
    )


@pytest.fixture
def pelk(build, randomise):
    arch = dict(channels=[8, 16], depths=[1, 1], kernel_sizes=[9, 7], central_radius=1)
    return randomise(build(dict(type='PeLK', arch=arch, out_indices=(0, 1))))


@pytest.mark.parametrize('family', ['slak', 'replknet', 'pelk'])
@pytest.mark.parametrize('channels', [1, 4])
@torch.no_grad()
def test_models(small, pelk, convert, build, family, channels):
    model, weights = (pelk, pelk.state_dict()) if family == 'pelk' else small(family)
    report, written = convert({'model': weights}, in_channels=channels)
    assert report.backbone['in_channels'] == channels
    assert report.notes[0].startswith(f'stem: 3 input channels became {channels};')
    adapted = build(report.backbone)
    adapted.load_state_dict(written['state_dict'])
    image = torch.randn(1, 1, 32, 32)
    expected = model(image.expand(-1, 3, -1, -1))
    outs = adapted(image.expand(-1, channels, -1, -1))
    for out, reference in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-4)


def test_released_names(small, convert):
    model, released = small('replknet')
    content = {'state_dict': model.state_dict()}
    report, back = convert(content, official=True, in_channels=4)
    assert back['model']['stem.0.conv.weight'].shape[1] == 4
    assert report.backbone['in_channels'] == 4
    report, again = convert(back, in_channels=3)
    assert 'in_channels' not in report.backbone
    assert again['state_dict'].keys() == model.state_dict().keys()


def test_pelk_starts_with_it(small, convert, build):
    report, written = convert(small()[1], in_channels=4, warm_start='pelk')
    assert report.backbone['in_channels'] == 4
    build(report.backbone).load_state_dict(written['state_dict'])


def test_nothing_to_do(small, convert):
    _, released = small()
    report, written = convert(released, in_channels=3)
    assert report.notes == []
    name = 'downsample_layers.0.0.weight'
    assert torch.equal(written['state_dict'][name], released[name])


@pytest.mark.parametrize('channels', [0, -1])
def test_refusal(small, convert, channels):
    with pytest.raises(
        CheckpointError, match=f'in_channels {channels} is not a positive'
    ):
        convert(small()[1], in_channels=channels)
