import weakref

import numpy as np
import pytest
import torch
from torch import nn

from pelk_mm.analysis import receptive_field
from pelk_mm.analysis.receptive_field import (
    Field,
    Sample,
    contributions,
    field_key,
    last_map,
    log_scaled,
    measure,
    resume,
    squares,
)
from pelk_mm.backbones import PeLK, RepLKNet, SLaK

SIZES = dict(channels=[8, 12, 16], depths=[1, 1, 1], kernel_sizes=[13, 11, 9])
FAMILIES = {
    'pelk': (PeLK, dict(SIZES, central_radius=2)),
    'slak': (SLaK, SIZES),
    'replknet': (RepLKNet, SIZES),
}
KEY = '{"weights": "a"}'


@pytest.fixture(autouse=True, scope='module')
def _one_thread(one_thread):
    """For all tests of this file."""


@pytest.fixture(params=FAMILIES)
def backbone(request, randomise):
    """A narrow model in which norms and scales are as if it were trained."""
    cls, arch = FAMILIES[request.param]
    return randomise(cls(arch, out_indices=(0, 2))).eval()


def images(number, height=71, width=96):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(1, 3, height, width, generator=generator) for _ in range(number)
    ]


def as_samples(tensors):
    return [
        Sample(f'image {i}', f'id {i}', lambda x=x: x.clone())
        for i, x in enumerate(tensors)
    ]


# ------------------------------------------------------------------------ one image


@pytest.mark.parametrize('shape', [(64, 96), (71, 45), (33, 33)])
def test_definition(backbone, shape):
    """Against the Jacobian of the map's centre, channel by channel."""
    (image,) = images(1, *shape)

    def centre(x):
        found = last_map(backbone, x)
        height, width = found.shape[-2:]
        return found[0, :, height // 2, width // 2]

    rows = torch.autograd.functional.jacobian(centre, image)[:, 0]
    positive = (centre(image) > 0).float()
    expected = torch.einsum('k,kchw->chw', positive, rows).clamp(min=0).sum(0)
    found = contributions(backbone, image)
    assert found.dtype == np.float64
    assert found.shape == shape
    assert np.abs(found - expected.numpy()).max() <= 1e-5 * found.max()
    assert found.min() >= 0 < found.max()


def test_last_map_comes_before_the_output_norm(backbone):
    (image,) = images(1)
    found = last_map(backbone, image)
    norm = getattr(backbone, 'norm2', nn.Identity())
    assert torch.equal(norm(found), backbone(image)[-1])
    assert not backbone.stages[2]._forward_hooks


def test_other_backbones():
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    nn.init.constant_(conv.weight, 0.5)
    model = nn.Sequential(conv, nn.AvgPool2d(8))
    found = contributions(model, torch.ones(1, 3, 32, 32))
    rows, columns = np.nonzero(found)
    # The centre (2, 2) of a 4 x 4 map sees pixels 16 to 23 and one around them.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (15, 24, 15, 24)
    assert found[18, 18] == pytest.approx(4 * 3 * 9 * 0.5 / 64)
    flat = nn.Sequential(conv, nn.Flatten())
    with pytest.raises(ValueError, match=r'Sequential is \(1, 4096\), not a map'):
        contributions(flat, torch.ones(1, 3, 32, 32))


def test_same_by_torch_convolutions(backbone, monkeypatch):
    inputs = as_samples(images(3))
    ours = measure(backbone, inputs, KEY).mean
    monkeypatch.setenv('PELK_MM_CONV', 'nchw')
    torchs = measure(backbone, inputs, KEY).mean
    assert np.abs(ours - torchs).max() <= 1e-5 * torchs.max()
    for scale in (log_scaled, np.asarray):
        sides = [[s.side for s in squares(scale(m))] for m in (ours, torchs)]
        assert sides[0] == sides[1]


# ---------------------------------------------------------------------------- areas


def grown_square(matrix, share):
    """Side and area of the square, one pixel ring after another."""
    height, width = matrix.shape
    row, column = height // 2, width // 2
    for radius in range(max(height, width)):
        part = matrix[
            max(row - radius, 0) : row + radius + 1,
            max(column - radius, 0) : column + radius + 1,
        ]
        if part.sum() / matrix.sum() > share:
            return 2 * radius + 1, part.size / matrix.size
    raise AssertionError


@pytest.mark.parametrize('shape', [(1, 1), (8, 8), (9, 9), (31, 64), (64, 31), (2, 99)])
def test_squares_grow_until_they_hold_the_share(shape):
    rng = np.random.default_rng(0)
    for power in (0.5, 3, 12):
        matrix = rng.uniform(size=shape) ** power
        for square in squares(matrix, (0.05, 0.2, 0.5, 0.99, 0.9999)):
            assert (square.side, square.area) == grown_square(matrix, square.share)


def test_uniform_contributions_need_the_area_of_their_share():
    for square in squares(np.ones((1023, 1023))):
        assert square.share <= square.area < square.share + 0.01
        assert square.area == pytest.approx((square.side / 1023) ** 2)


def test_a_point_needs_one_pixel():
    matrix = np.zeros((64, 48))
    matrix[32, 24] = 1e-30
    assert [square.side for square in squares(matrix)] == [1] * 4
    matrix[0, 0] = matrix[32, 24]  # a corner holds half
    assert [square.side for square in squares(matrix, (0.4, 0.6))] == [1, 65]
    assert squares(matrix, (0.6,))[0].area == 1


def test_log_scale():
    matrix = np.array([[0.0, 9.0], [99.0, 999.0]])
    assert log_scaled(matrix) == pytest.approx(np.array([[0, 1], [2, 3]]) / 3)


@pytest.mark.parametrize('share', [0, 1, -0.2, 99])
def test_shares_out_of_range(share):
    with pytest.raises(ValueError, match=f'share {share} is not between 0 and 1'):
        squares(np.ones((4, 4)), (share,))


@pytest.mark.parametrize('function', [squares, log_scaled])
def test_nothing_contributes(function):
    with pytest.raises(ValueError, match='no pixel contributes'):
        function(np.zeros((4, 4)))


# ---------------------------------------------------------------------- many images


def test_mean_over_images(backbone):
    tensors = images(3)
    field = measure(backbone, as_samples(tensors), KEY)
    expected = sum(contributions(backbone, x) for x in tensors) / 3
    assert field.images == 3
    assert np.array_equal(field.mean, expected)
    assert not any(p.requires_grad or p.grad is not None for p in backbone.parameters())


def test_one_image_in_memory_at_a_time(backbone):
    alive = []

    def read(image):
        assert all(reference() is None for reference in alive)
        image = image.clone()
        alive.append(weakref.ref(image))
        return image

    tensors = images(3)
    samples = [
        Sample(str(i), str(i), lambda x=x: read(x)) for i, x in enumerate(tensors)
    ]
    measure(backbone, samples, KEY)
    assert len(alive) == 3


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_images_without_finite_gradient_are_left_out(backbone, value):
    good, bad, other = images(3)
    bad[:] = value
    field = measure(backbone, as_samples([good, bad, other]), KEY)
    assert field.skipped == ['image 1']
    assert field.images == 2
    expected = (contributions(backbone, good) + contributions(backbone, other)) / 2
    assert np.array_equal(field.mean, expected)
    nothing = measure(backbone, as_samples([bad]), KEY)
    with pytest.raises(ValueError, match='gradients on all 1 images are NaN'):
        _ = nothing.mean


def test_no_images(backbone):
    with pytest.raises(ValueError, match='no images'):
        measure(backbone, [], KEY)


@pytest.mark.parametrize('stop', [0, 6])
def test_interrupted_and_resumed_gives_the_same_bits(backbone, tmp_path, stop):
    samples = as_samples(images(7, 40, 33))
    whole = measure(backbone, samples, KEY)
    path = tmp_path / 'a.npz'

    def interrupt():
        raise KeyboardInterrupt

    cut = [*samples[:stop], Sample('', '', interrupt)]
    with pytest.raises(KeyboardInterrupt):
        measure(backbone, cut, KEY, path)
    start, reason = resume(path, KEY, samples)
    assert reason == ''
    assert (len(start.seen) if start else 0) == stop
    read = []

    def track(items, description, total):
        assert total == 7 - stop
        for item in items:
            read.append(item.name)
            yield item

    field = measure(backbone, samples, KEY, path, start, track)
    assert read == [sample.name for sample in samples[stop:]]
    assert np.array_equal(field.total, whole.total)
    assert np.array_equal(Field.load(path).total, whole.total)
    # Once more: nothing is left to do.
    again = measure(backbone, samples, KEY, path, *resume(path, KEY, samples)[:1])
    assert np.array_equal(again.total, whole.total)
    assert [each.name for each in tmp_path.iterdir()] == ['a.npz']


@pytest.mark.parametrize(
    ('seconds', 'expected'), [(1e9, [0] * 5 + [5] * 5 + [10] * 2), (0, list(range(12)))]
)
def test_saved_every_few_images(tmp_path, monkeypatch, seconds, expected):
    """What a killed process leaves."""
    monkeypatch.setattr(receptive_field, 'SAVE_SECONDS', seconds)
    backbone = nn.Conv2d(3, 4, 3)
    path = tmp_path / 'a.npz'
    found = []

    def track(items, description, total):
        for item in items:
            found.append(len(Field.load(path).seen) if path.exists() else 0)
            yield item

    measure(backbone, as_samples(images(12, 33, 33)), KEY, path, None, track)
    assert found == expected


def test_key_changes_with_anything_but_the_images(backbone, monkeypatch):
    def key(size=(32, 32), preprocessing='p'):
        return field_key(backbone, size, preprocessing)

    first = key()
    assert key() == first
    keys = {first, key(size=(32, 33)), key(preprocessing='q')}
    with torch.no_grad():
        parameter = next(reversed(list(backbone.parameters())))
        parameter.view(-1)[-1] += 1e-3
    keys.add(key())
    monkeypatch.setenv('PELK_MM_CONV', 'nchw')
    keys.add(key())
    assert len(keys) == 5


def test_what_makes_a_file_useless(tmp_path):
    path = tmp_path / 'a.npz'
    samples = as_samples(images(3, 8, 8))
    assert resume(path, KEY, samples) == (None, '')
    field = Field(KEY, np.ones((8, 8)), ['id 0', 'id 1'])
    field.save(path)
    assert resume(path, KEY, samples)[0] == field.__class__(
        KEY, pytest.approx(field.total), field.seen
    )
    assert 'with other weights' in resume(path, '{"weights": "b"}', samples)[1]
    assert 'with other size' in resume(path, '{"size": 8}', samples)[1]
    assert 'not the first' in resume(path, KEY, samples[:1])[1]
    assert 'not the first' in resume(path, KEY, samples[1:])[1]
    data = path.read_bytes()
    for damaged in (b'', b'PK', data[:-40], data[: len(data) // 2], b'x' * 99):
        path.write_bytes(damaged)
        assert resume(path, KEY, samples) == (None, 'it is damaged')
    np.save(tmp_path / 'b.npy', np.ones(3))
    assert Field.load(tmp_path / 'b.npy') is None
