import json

import cv2
import numpy as np
import pytest

from pelk_mm.analysis.receptive_field import Field
from pelk_mm.analysis.receptive_field_picture import (
    Measured,
    as_json,
    draw_fields,
    format_tables,
)

KEY = '{"weights": "a", "size": [64, 64]}'


def bump(width, shape=(64, 64), images=3, skipped=()):
    """Contributions that fall off from the centre."""
    height, across = shape
    rows, columns = np.indices(shape)
    distance = np.hypot(rows - height // 2, columns - across // 2)
    seen = [str(i) for i in range(images + len(skipped))]
    return Field(KEY, images * np.exp(-distance / width), seen, list(skipped))


@pytest.fixture
def two():
    return [
        Measured.of('narrow', 'random weights, seed 0', bump(2)),
        Measured.of('wide', 'iter_1.pth', bump(20)),
    ]


def test_tables(two):
    text = format_tables(two)
    rows = [
        line for line in text.splitlines() if line.startswith(('| narrow', '| wide'))
    ]
    assert len(rows) == 4
    for row, squares in zip(
        rows, [e.squares for e in two] + [e.unscaled for e in two], strict=True
    ):
        cells = [cell.strip() for cell in row.split('|')[3:-1]]
        assert cells == [f'{100 * s.area:.1f} % ({s.side})' for s in squares]
    assert '| model | weights | 20 % | 30 % | 50 % | 99 % |' in text
    assert '3 images of 64 x 64.' in text
    assert two[0].squares[3].side < two[1].squares[3].side


def test_skipped_images_are_named(two):
    two.append(Measured.of('third', '', bump(3, images=1, skipped=['b.png'])))
    text = format_tables(two)
    assert text.endswith(
        'third: without b.png, on which the gradient is NaN or infinite.'
    )
    assert '1 to 3 images' in text


def test_json(two):
    models = json.loads(as_json(two))['models']
    assert [model['name'] for model in models] == ['narrow', 'wide']
    first = models[0]
    assert first['images'] == 3
    assert first['largest_contribution'] == 1
    assert [each['share'] for each in first['log_scaled']] == [0.2, 0.3, 0.5, 0.99]
    assert first['unscaled'][0]['side'] == two[0].unscaled[0].side
    assert first['settings']['size'] == [64, 64]


def panel(path):
    """The picture, and how much of it is dark green."""
    image = cv2.imread(str(path)).astype(int)
    blue, green, red = image.transpose(2, 0, 1)
    return image, ((green - red > 40) & (green - blue > 20)).mean()


def test_wider_fields_are_larger_in_the_picture(tmp_path):
    greens = []
    for width in (2, 20):
        path = tmp_path / f'{width}.png'
        draw_fields([Measured.of('a', 'b', bump(width))], path, outlines=False)
        greens.append(panel(path)[1])
    assert greens[0] < greens[1]


def test_outlines(tmp_path, two):
    for outlines in (True, False):
        draw_fields(two, tmp_path / f'{outlines}.png', outlines)
    with_, without = (panel(tmp_path / f'{o}.png')[0] for o in (True, False))
    vermilion = (0x00, 0x5E, 0xD5)  # of the smallest square
    found = [(abs(image - vermilion).sum(2) < 9).any() for image in (with_, without)]
    assert found == [True, False]


def test_more_models_than_a_row_has_and_long_names(tmp_path):
    models = [
        Measured.of('a very long name ' * 9, 'of a checkpoint ' * 9, bump(9, (40, 90)))
    ]
    draw_fields(models * 5, tmp_path / 'a.png')
    image, _ = panel(tmp_path / 'a.png')
    assert image.shape[1] > 110 * 3 * 4
    assert image.shape[0] > 110 * 3 * 2
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border == 255).all()  # nothing is cut off


def test_nothing_contributes():
    field = Field(KEY, np.zeros((8, 8)), ['a'])
    with pytest.raises(ValueError, match='^a: no pixel contributes'):
        Measured.of('a', 'b', field)
