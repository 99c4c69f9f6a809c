import cv2
import numpy as np
import pytest
import torch

from pelk_mm.analysis.receptive_field_images import (
    DRAWN_SIZE,
    Preprocessing,
    draw,
    draw_pictures,
    find_pictures,
    resize,
    samples,
)


@pytest.fixture(scope='module')
def drawn():
    return [draw(number) for number in range(2)]


def test_drawn_images_depend_on_their_number_alone(drawn):
    np.random.seed(1)
    assert np.array_equal(draw(0), drawn[0])
    assert not np.array_equal(*drawn)
    first, second = draw_pictures(2)
    assert first.identity != second.identity
    assert np.array_equal(second.pixels(), drawn[1])


def test_drawn_images_have_structure_of_every_scale(drawn):
    for image in drawn:
        assert image.shape == (DRAWN_SIZE, DRAWN_SIZE, 3)
        assert image.dtype == np.uint8
        left = image.astype(np.float32)
        for side in (512, 256, 128, 64, 32, 16, 8):
            smaller = cv2.resize(left, (side, side), interpolation=cv2.INTER_AREA)
            larger = cv2.resize(smaller, left.shape[:2], interpolation=cv2.INTER_LINEAR)
            assert (left - larger).std() > 3
            left = smaller


def test_preprocessing():
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:] = (10, 20, 30)  # blue, green, red
    rgb = Preprocessing(3, True, (1, 2, 3), (2, 2, 4))(pixels)
    assert rgb.shape == (1, 3, 4, 6)
    assert rgb.dtype == torch.float32
    assert rgb[0, :, 0, 0].tolist() == [14.5, 9, 1.75]
    bgr = Preprocessing(3, False, (1, 2, 3), (2, 2, 4))(pixels)
    assert bgr[0, :, 0, 0].tolist() == [4.5, 9, 6.75]
    grey = Preprocessing(1, False, (0,), (1,))(pixels)
    assert grey.shape == (1, 1, 4, 6)
    assert grey[0, 0, 0, 0] == 22  # 0.114 x 10 + 0.587 x 20 + 0.299 x 30


@pytest.mark.parametrize('shape', [(64, 64), (200, 300), (20, 30), (40, 300)])
def test_images_are_stretched_to_a_square(shape):
    image = np.full((*shape, 3), 77, np.uint8)
    assert resize(image, 64).shape == (64, 64, 3)
    assert set(np.unique(resize(image, 64))) == {77}


@pytest.fixture
def folder(tmp_path):
    """Images in two folders, grey and coloured, of several sizes and formats."""
    (tmp_path / 'b').mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (
        ('b/2.PNG', (40, 50, 3)),
        ('b/1.jpg', (33, 33)),
        ('c.webp', (20, 90, 3)),
        ('a.tif', (64, 64, 4)),
    ):
        pixels = rng.integers(0, 255, shape, dtype=np.uint8)
        ok, data = cv2.imencode((tmp_path / name).suffix.lower(), pixels)
        assert ok
        (tmp_path / name).write_bytes(data.tobytes())
    (tmp_path / 'notes.txt').write_text('no image')
    return tmp_path


def test_first_images_of_a_folder(folder):
    found = find_pictures(folder, 50)
    assert [each.name for each in found] == ['a.tif', 'b/1.jpg', 'b/2.PNG', 'c.webp']
    assert [each.name for each in find_pictures(folder, 2)] == ['a.tif', 'b/1.jpg']
    for sample in samples(found, 37, Preprocessing(), 'cpu'):
        assert sample.read().shape == (1, 3, 37, 37)
    grey = found[1].pixels()
    assert np.array_equal(grey[..., 0], grey[..., 2])


def test_identity_follows_the_file(folder):
    before = [each.identity for each in find_pictures(folder, 9)]
    (folder / 'c.webp').write_bytes((folder / 'b' / '2.PNG').read_bytes())
    after = [each.identity for each in find_pictures(folder, 9)]
    assert before[:3] == after[:3]
    assert before[3] != after[3]


def test_bad_folders(folder, tmp_path):
    with pytest.raises(ValueError, match='gone does not exist; give a folder'):
        find_pictures(folder / 'gone', 9)
    with pytest.raises(ValueError, match='notes.txt is a file; give a folder'):
        find_pictures(folder / 'notes.txt', 9)
    (folder / 'empty').mkdir()
    with pytest.raises(ValueError, match='empty has no image'):
        find_pictures(folder / 'empty', 9)
    for content in (b'', b'no image'):
        (folder / 'b' / '3.jpg').write_bytes(content)
        with pytest.raises(ValueError, match=r'3\.jpg is damaged or no image'):
            find_pictures(folder, 9)
    assert len(find_pictures(folder, 3)) == 3  # those before it
