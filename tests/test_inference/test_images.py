"""Reading images as mm's pipelines do, finding them, naming the results."""

import cv2
import numpy as np
import pytest
from PIL import Image

from pelk_mm.inference.images import (
    ImageError,
    encode_png,
    find_inputs,
    image_size,
    name_results,
    read_image,
    to_rgb,
)

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_colours(tmp_path):
    path = save(tmp_path / 'a.png', COLOURS)
    assert np.array_equal(read_image(path), COLOURS[..., ::-1])
    assert np.array_equal(to_rgb(read_image(path)), COLOURS)
    assert image_size(path) == (7, 5)


def test_grey_becomes_three_equal_channels(tmp_path):
    image = read_image(save(tmp_path / 'grey.png', COLOURS[..., 0]))
    assert image.shape == (5, 7, 3)
    assert np.array_equal(image, COLOURS[..., :1].repeat(3, 2))
    one = read_image(tmp_path / 'grey.png', 'grayscale')
    assert one.shape == (5, 7, 1)
    assert np.array_equal(to_rgb(one), COLOURS[..., :1].repeat(3, 2))


def test_sixteen_bits_become_eight(tmp_path):
    values = COLOURS[..., 0].astype(np.uint16) * 256 + 17
    cv2.imwrite(str(tmp_path / 'deep.png'), values)
    assert np.array_equal(read_image(tmp_path / 'deep.png')[..., 0], COLOURS[..., 0])
    unchanged = read_image(tmp_path / 'deep.png', 'unchanged')
    assert unchanged.dtype == np.uint16
    picture = to_rgb(unchanged)
    assert picture.dtype == np.uint8
    assert picture.max() == 255


def test_transparency_is_left_out(tmp_path):
    alpha = np.full((5, 7, 1), 9, np.uint8)
    path = save(tmp_path / 'a.png', np.concatenate([COLOURS, alpha], 2))
    assert np.array_equal(read_image(path), COLOURS[..., ::-1])


def test_palette_and_one_bit(tmp_path):
    Image.fromarray(COLOURS).convert('P').save(tmp_path / 'p.png')
    assert read_image(tmp_path / 'p.png').shape == (5, 7, 3)
    Image.fromarray(COLOURS).convert('1').save(tmp_path / 'bit.png')
    assert set(np.unique(read_image(tmp_path / 'bit.png'))) <= {0, 255}


def test_photograph_is_turned(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright
    path = save(tmp_path / 'a.jpg', COLOURS, exif=exif)
    assert read_image(path).shape == (7, 5, 3)


@pytest.mark.parametrize(
    ('content', 'message'),
    [(b'', 'is empty'), (b'hello', 'cannot be dec'), (b'\x89PNG\r\n\x1a\n', 'cannot')],
)
def test_what_is_no_image(content, message, tmp_path):
    path = tmp_path / 'a.png'
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as raised:
        read_image(path)
    assert str(path) in str(raised.value)
    assert image_size(path) is None


def test_fractions_are_refused(tmp_path):
    path = tmp_path / 'a.tif'
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    with pytest.raises(ImageError, match='fractions, not colours'):
        read_image(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match=r'gone\.png cannot be read: No such file'):
        read_image(tmp_path / 'gone.png')
    with pytest.raises(ImageError, match='cannot be read: Is a directory'):
        read_image(tmp_path)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / 'photos'
    for name in ('b.jpg', 'a.PNG', 'sub/a.jpg', 'sub/deep/c.tif', 'notes.txt'):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def names(found):
    root, files = found
    return [str(path.relative_to(root)) for path in files]


def test_inputs(photos):
    assert names(find_inputs(str(photos))) == [
        'a.PNG',
        'b.jpg',
        'sub/a.jpg',
        'sub/deep/c.tif',
    ]
    assert names(find_inputs(str(photos / 'sub' / 'a.jpg'))) == ['a.jpg']
    assert names(find_inputs(f'{photos}/**/*.jpg')) == ['b.jpg', 'sub/a.jpg']
    assert names(find_inputs(f'{photos}/s*/*.jpg')) == ['sub/a.jpg']


def test_inputs_relative_to_here(photos, monkeypatch):
    monkeypatch.chdir(photos / 'sub')
    assert names(find_inputs('*.jpg')) == ['a.jpg']
    assert names(find_inputs('../*.jpg')) == ['b.jpg']
    assert names(find_inputs('.')) == ['a.jpg', 'deep/c.tif']


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('gone.jpg', 'does not exist'),
        ('*.gif', 'no file matches'),
        ('empty', 'has no images, which end in .jpg'),
    ],
)
def test_no_inputs(name, message, photos):
    (photos / 'empty').mkdir()
    with pytest.raises(ImageError, match=message):
        find_inputs(str(photos / name))


def test_results_keep_their_paths(photos, tmp_path):
    (photos / 'b.png').touch()
    root, files = find_inputs(str(photos))
    results = name_results(root, files, tmp_path / 'out')
    assert [str(path.relative_to(tmp_path / 'out')) for path in results] == [
        'a.png',
        'b.jpg.png',  # there is a b.png too
        'b.png.png',
        'sub/a.png',
        'sub/deep/c.png',
    ]
    cams = name_results(root, files[:1], tmp_path / 'out', mark='_cam')
    assert cams == [tmp_path / 'out' / 'a_cam.png']


def test_results_replace_no_input(photos):
    (photos / 'c.png').touch()
    root, files = find_inputs(str(photos))
    with pytest.raises(ImageError, match=r'c\.png would replace an image'):
        name_results(root, files, photos)


def test_results_leave_by_no_link(photos, tmp_path):
    root, files = find_inputs(str(photos))
    out = tmp_path / 'out'
    out.mkdir()
    (tmp_path / 'elsewhere').mkdir()
    (out / 'sub').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(ImageError, match='leads out of .*out through a link'):
        name_results(root, files, out)


def test_png(tmp_path):
    (tmp_path / 'a.png').write_bytes(encode_png(COLOURS))
    with Image.open(tmp_path / 'a.png') as image:
        assert np.array_equal(np.asarray(image), COLOURS)
