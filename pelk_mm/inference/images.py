"""Image files: reading them as mm's pipelines do, listing them, naming the results."""

import glob
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import mmcv
import numpy as np
from PIL import Image

from pelk_mm.checkpoints.files import first_line

#: Endings of the files of a folder that are read as images.
IMAGE_SUFFIXES = (
    '.jpg',
    '.jpeg',
    '.png',
    '.bmp',
    '.webp',
    '.tif',
    '.tiff',
    '.ppm',
    '.pgm',
    '.jp2',
)
#: Endings of files that are read as videos.
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')

#: Modes in which Pillow opens images of more than 16 bits per value, or of fractions.
_WIDE_MODES = ('F', 'I')


class ImageError(ValueError):
    """An image or video that cannot be read; the message is a sentence."""


def image_size(path: str | Path) -> tuple[int, int] | None:
    """Width and height that an image file claims, without decoding it.

    Returns:
        None where Pillow does not know the format.
    """
    header = _open_header(Path(path))
    return header and header.size


class _Header(NamedTuple):
    """What Pillow says of an image file before decoding it."""

    size: tuple[int, int]
    mode: str
    format: str | None


def _open_header(path: Path) -> _Header | None:
    """Read the header of an image file; None where Pillow does not know the format."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of many pixels, which the caller counts
            with Image.open(path) as image:
                return _Header(image.size, image.mode, image.format)
    except Image.DecompressionBombError as error:
        raise ImageError(f'{path.name} {first_line(error)}') from error
    except Exception:  # whatever a parser raises at meaningless bytes
        return None


def read_image(
    path: str | Path, flag: str = 'color', backend: str = 'cv2'
) -> np.ndarray:
    """Read an image file with mmcv, as the pipelines of mmseg and mmdet do.

    With the defaults grey images become three equal channels, 16 bits 8, transparency
    is left out, and a photograph is turned as its EXIF data says.

    Args:
        path: The file.
        flag: ``color_type`` of the pipeline's step.
        backend: ``imdecode_backend`` of that step.

    Returns:
        (H, W, C), blue first, uint8 with the default flag.

    Raises:
        ImageError: If it cannot be read, is no image, or holds fractions or more than
            16 bits, which decoding would cut off.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f'{path} cannot be read: {error.strerror}') from error
    if not content:
        raise ImageError(f'{path} is empty')
    header = _open_header(path)
    # A PNG has 16 bits at most, whatever Pillow opens it as.
    if header and header.mode in _WIDE_MODES and header.format != 'PNG':
        raise ImageError(
            f'{path} holds numbers of more than 16 bits or fractions, not colours; '
            'save it as an 8-bit image'
        )
    try:
        image = mmcv.imfrombytes(content, flag, backend=backend)
    except Exception as error:  # whatever a decoder raises at meaningless bytes
        raise ImageError(
            f'{path} cannot be decoded as an image: {first_line(error)}'
        ) from error
    if image is None:
        raise ImageError(f'{path} cannot be decoded as an image')
    return image if image.ndim == 3 else image[..., None]


def to_rgb(image: np.ndarray) -> np.ndarray:
    """A picture to show of what a model is given.

    Args:
        image: (H, W, C), blue first; of other numbers of channels than 3 the first one
            is shown. Types other than uint8 are scaled to their largest value.

    Returns:
        (H, W, 3), uint8, red first.
    """
    if image.dtype != np.uint8:
        scale = 255 / max(float(image.max()), 1e-12)
        image = (image.clip(0) * scale).astype(np.uint8)
    if image.shape[2] < 3:
        image = image[..., :1].repeat(3, axis=2)
    return np.ascontiguousarray(image[..., 2::-1])


def find_inputs(source: str) -> tuple[Path, list[Path]]:
    """The files that a command-line argument means.

    Args:
        source: A file; a folder, whose images are found in its subfolders too; or a
            pattern such as ``'photos/**/*.jpg'``.

    Returns:
        The folder that results keep their names relative to, and the files in
        alphabetical order.

    Raises:
        ImageError: If there are none.
    """
    path = Path(source)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        files = [p for p in path.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise ImageError(
                f'{source} has no images, which end in {", ".join(IMAGE_SUFFIXES)}'
            )
        return path, sorted(filter(Path.is_file, files))
    if glob.has_magic(source):
        found = sorted(Path(p) for p in glob.glob(source, recursive=True))
        files = [p for p in found if p.is_file()]
        if not files:
            raise ImageError(f'no file matches {source!r}')
        parts = Path(source).parts
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        return Path(*parts[:fixed]), files
    raise ImageError(f'{source} does not exist')


def name_results(
    root: Path, files: Sequence[Path], out: Path, suffix: str = '.png', mark: str = ''
) -> list[Path]:
    """Paths of the results for some files.

    They keep the files' paths relative to a folder. Files whose names differ in their
    endings alone keep these: ``a.jpg.png`` and ``a.bmp.png``.

    Args:
        root: The folder that all the files are in.
        files: The files.
        out: Folder of the results.
        suffix: Ending of the results.
        mark: What is added to each name before the ending.

    Raises:
        ImageError: If a result would replace one of the files, or be written outside
            of `out`, as through a symbolic link in it.
    """
    relative = [path.relative_to(root) for path in files]
    stems = Counter(path.with_suffix('') for path in relative)
    results = []
    for path in relative:
        unique = stems[path.with_suffix('')] == 1
        name = f'{path.stem if unique else path.name}{mark}{suffix}'
        results.append(out / path.with_name(name))
    sources = {path.resolve() for path in files}
    for result in results:
        if result.resolve() in sources:
            raise ImageError(
                f'{result} would replace an image that is read; choose another --out'
            )
        if not result.resolve().is_relative_to(out.resolve()):
            raise ImageError(
                f'{result} leads out of {out} through a link; choose another --out'
            )
    return results


def encode_png(picture: np.ndarray) -> bytes:
    """A picture of (H, W, 3), red first, as the bytes of a PNG file."""
    _, content = cv2.imencode('.png', picture[..., ::-1])
    return content.tobytes()
