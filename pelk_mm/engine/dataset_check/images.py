"""What a file says of its image before mm loads it."""

import warnings
from io import BytesIO
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from pelk_mm.checkpoints.files import first_line

_PNG = b'\x89PNG\r\n\x1a\n'
#: Tags of EXIF and of TIFF.
_ORIENTATION, _BITS_PER_SAMPLE = 274, 258


#: Most pixels that OpenCV decodes, and that a byte of a file can stand for: DEFLATE
#: writes 1032 bytes as one, of 8 pixels each in a black and white image.
MAX_PIXELS, PIXELS_PER_BYTE = 1 << 30, 8400


class Facts(NamedTuple):
    """Facts of an image file.

    Attributes:
        size: Width and height, before EXIF data turns it.
        mode: Pillow's name of the kind of pixels, such as ``RGB``.
        bits: Bits per value.
        orientation: 1 for as it is; 2 to 8 of EXIF turn or mirror it.
        fault: Why it cannot be decoded to its end, or an empty string.
    """

    size: tuple[int, int]
    mode: str
    bits: int
    orientation: int
    fault: str


def explain_no_image(content: bytes) -> str:
    """What the bytes are instead of an image; an empty string if that is not known."""
    start = content[:512].lstrip().lower()
    if not content:
        return 'is empty (0 bytes)'
    if start.startswith(b'version https://git-lfs'):
        return 'is a Git LFS pointer; run `git lfs pull`'
    if start.startswith((b'<!doctype', b'<html')):
        return 'is a web page, which its server sent instead'
    return ''


def decode_whole(content: bytes) -> Facts | None:
    """Decode an image to its end: OpenCV fills what a damaged file lacks with grey.

    Returns:
        Its facts; None where Pillow does not know the format.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of odd metadata
            try:
                image = Image.open(BytesIO(content))
            except UnidentifiedImageError:
                return None
            with image:
                pixels = image.size[0] * image.size[1]
                if pixels > min(MAX_PIXELS, PIXELS_PER_BYTE * len(content)):
                    fault = f'claims {pixels:,} pixels in {len(content):,} bytes'
                    return Facts(image.size, image.mode, 8, 1, fault)
                try:
                    orientation = int(image.getexif().get(_ORIENTATION, 1))
                except Exception:  # damaged metadata, which OpenCV ignores too
                    orientation = 1
                fault = ''
                try:
                    image.load()
                except Exception as error:  # whatever a decoder raises
                    fault = first_line(error)
                bits = _bits(content, image)
                return Facts(image.size, image.mode, bits, orientation, fault)
    except Exception as error:  # damaged so early that it cannot be opened
        return Facts((0, 0), '', 8, 1, first_line(error))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _bits(content: bytes, image: Image.Image) -> int:
    """Bits per value; Pillow opens PNGs of 16-bit colours as 8 bits."""
    if content.startswith(_PNG) and len(content) > 24:
        return content[24]
    if image.mode.startswith('I;16'):
        return 16
    tags = getattr(image, 'tag_v2', None) or {}
    bits = tags.get(_BITS_PER_SAMPLE, (32 if image.mode in ('I', 'F') else 8,))
    return max(bits) if isinstance(bits, tuple) else int(bits)
