"""Images to measure receptive fields on: a folder's, or drawn ones."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from .receptive_field import Sample

#: Endings of the files that count as images.
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')

#: Side of the drawn images, that of the papers' input.
DRAWN_SIZE = 1024

#: Mean and standard deviation of ImageNet's pixels, red, green, blue.
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Preprocessing:
    """How the pixels of an image become a model's input.

    Attributes:
        channels: 3, or 1 for grey images.
        rgb: Whether the channels are red, green, blue and not blue, green, red.
        mean: What is subtracted, one value per channel or one for all.
        std: What the difference is divided by, likewise.
    """

    channels: int = 3
    rgb: bool = True
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Make the input, (1, channels, H, W), from (H, W, 3) of blue, green, red."""
        if self.channels == 1:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)[..., None]
        elif self.rgb:
            pixels = pixels[..., ::-1]
        mean, std = (np.asarray(each, np.float32) for each in (self.mean, self.std))
        values = (pixels.astype(np.float32) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1))[None])


@dataclass(frozen=True)
class Picture:
    """An image by its name.

    Attributes:
        name: A file's name or what was drawn.
        identity: A hash of the file, or of the code that draws it, and its number.
        pixels: Reads or draws it: (H, W, 3) of uint8, blue, green, red.
    """

    name: str
    identity: str
    pixels: Callable[[], np.ndarray]


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Stretch an image to a square, as the papers do, by area or bicubically."""
    if pixels.shape[:2] == (size, size):
        return pixels
    shrinks = min(pixels.shape[:2]) >= size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(pixels, (size, size), interpolation=how)


def samples(
    pictures: Sequence[Picture], size: int, preprocess: Preprocessing, device: str
) -> list[Sample]:
    """Make a model's inputs of pictures, each when it is needed.

    Args:
        pictures: The pictures.
        size: Height and width of the inputs.
        preprocess: How pixels become inputs.
        device: Where the inputs are to be.
    """

    def reader(picture: Picture) -> Callable[[], Tensor]:
        return lambda: preprocess(resize(picture.pixels(), size)).to(device)

    return [Sample(each.name, each.identity, reader(each)) for each in pictures]


# ---------------------------------------------------------------------- a folder


def _read(path: Path) -> np.ndarray:
    """Read an image file.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error) as error:
        raise ValueError(f'image {path} cannot be read: {error}') from error
    if pixels is None:
        raise ValueError(f'image {path} is damaged or no image; remove it')
    return pixels


def find_pictures(folder: Path, count: int) -> list[Picture]:
    """The first images of a folder and the folders in it, by path.

    All of them are read once, so that a damaged one is found before the computation.

    Args:
        folder: The folder.
        count: How many at most.

    Raises:
        ValueError: If there is no such folder, no image in it, or one is damaged.
    """
    if not folder.is_dir():
        what = 'is a file' if folder.exists() else 'does not exist'
        raise ValueError(f'--images {folder} {what}; give a folder of images')
    paths = sorted(
        path
        for path in folder.rglob('*')
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )[:count]
    if not paths:
        raise ValueError(
            f'--images {folder} has no image ({", ".join(SUFFIXES)}); give another '
            'folder, or leave --images out for drawn ones'
        )
    pictures = []
    for path in paths:
        _read(path)
        identity = hashlib.sha256(path.read_bytes()).hexdigest()
        name = path.relative_to(folder).as_posix()
        pictures.append(Picture(name, identity, partial(_read, path)))
    return pictures


# ------------------------------------------------------------------------- drawn


def draw_pictures(count: int) -> list[Picture]:
    """Images that `draw` makes, from number 0 on."""
    # Drawing all of them for a hash of pixels would take as long as a small model.
    source = inspect.getsource(draw) + inspect.getsource(_draw_shape)
    code = hashlib.sha256(source.encode()).hexdigest()
    return [
        Picture(
            f'drawn {number}',
            f'{code} {np.__version__} {cv2.__version__} {number}',
            partial(draw, number),
        )
        for number in range(count)
    ]


def draw(number: int) -> np.ndarray:
    """Draw an image that depends on nothing but its number.

    Light that changes over the whole image, noise of every scale as in natural images,
    and two hundred overlapping discs, boxes, triangles, strokes and gratings, large
    ones behind small ones.

    Returns:
        Pixels of shape (1024, 1024, 3), uint8.
    """
    rng = np.random.default_rng(number)
    size = DRAWN_SIZE
    image = np.zeros((size, size, 3), np.float32)
    for octave in range(1, 9):  # grids of 2 to 256 values along a side
        grid = rng.normal(0, 60 * 0.7**octave, (2**octave, 2**octave, 3))
        # Natural textures are mostly grey.
        grid = 0.7 * grid.mean(2, keepdims=True) + 0.3 * grid
        image += cv2.resize(
            grid.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
        )
    canvas = np.clip(image + rng.uniform(60, 190, 3), 0, 255).astype(np.uint8)
    radii = np.sort(rng.pareto(1.5, 200).clip(0, 40) * 8 + 4)[::-1]
    for radius in radii:
        _draw_shape(canvas, rng, int(radius))
    noise = rng.normal(0, rng.uniform(1, 6), canvas.shape)
    return np.clip(canvas + noise, 0, 255).round().astype(np.uint8)


def _draw_shape(canvas: np.ndarray, rng: np.random.Generator, radius: int) -> None:
    """Draw one shape of about a radius somewhere into an image."""
    size = canvas.shape[0]
    x, y = (int(v) for v in rng.integers(0, size, 2))
    colour = [float(v) for v in rng.uniform(0, 255, 3)]
    kind, angle = int(rng.integers(5)), float(rng.uniform(0, 180))
    turned = np.deg2rad(angle + np.arange(3) * 120)
    if kind == 0:
        axes = (radius, max(1, int(radius * rng.uniform(0.3, 1))))
        cv2.ellipse(canvas, (x, y), axes, angle, 0, 360, colour, -1, cv2.LINE_AA)
    elif kind == 1:
        box = ((x, y), (2 * radius, radius * float(rng.uniform(0.4, 2))), angle)
        cv2.fillPoly(canvas, [cv2.boxPoints(box).astype(np.int32)], colour, cv2.LINE_AA)
    elif kind == 2:
        corners = np.stack([np.cos(turned), np.sin(turned)], 1) * radius + (x, y)
        cv2.fillPoly(canvas, [corners.astype(np.int32)], colour, cv2.LINE_AA)
    elif kind == 3:
        tip = (x + int(radius * np.cos(turned[0])), y + int(radius * np.sin(turned[0])))
        cv2.line(canvas, (x, y), tip, colour, max(1, radius // 8), cv2.LINE_AA)
    else:
        rows, columns = (slice(max(v - radius, 0), v + radius) for v in (y, x))
        part = canvas[rows, columns].astype(np.float32)
        down, along = np.indices(part.shape[:2])
        wave = np.cos(turned[0]) * down + np.sin(turned[0]) * along
        period = rng.uniform(3, max(4, radius / 2))
        bright = 1 + 0.5 * np.sin(2 * np.pi / period * wave)
        canvas[rows, columns] = np.clip(part * bright[..., None], 0, 255)
