"""Pictures of predictions: colours over the image and a legend of the classes there."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from .images import to_rgb
from .models import Detection, Model, Segmentation

#: Share of a class's colour in a pixel of an overlay.
OPACITY = 0.5
#: Images with shorter longer sides are enlarged by a whole factor before drawing.
MIN_SIDE = 512

_BACKGROUND, _TEXT, _FAINT = (255, 255, 255), (34, 34, 34), (120, 120, 120)
_MAX_NAME = 48
#: Width of names and values in a legend of fixed size, in heights of its letters.
_FIXED_WIDTH = 18


class Entry(NamedTuple):
    """A line of a legend.

    Attributes:
        name: Name of the class.
        colour: Red, green and blue from 0 to 255.
        value: What is said of it.
    """

    name: str
    colour: tuple[int, int, int]
    value: str


def share_text(share: float) -> str:
    """A share as a percentage; one that is not zero does not read as zero."""
    return f'{share:.1%}' if share >= 0.0005 else '< 0.1%'


def segmentation_legend(model: Model, labels: np.ndarray) -> list[Entry]:
    """The classes in a label map with their shares of its pixels, largest first.

    Args:
        model: What predicted it; names and colours are its own.
        labels: (H, W).
    """
    indices, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind='stable')
    return [
        Entry(
            model.class_name(int(indices[i])),
            model.colour(int(indices[i])),
            share_text(counts[i] / labels.size),
        )
        for i in order
    ]


def detection_legend(model: Model, sample: Any, threshold: float) -> list[Entry]:
    """The classes of the objects found, with their number and best score.

    Args:
        model: What found them.
        sample: mmdet's data sample.
        threshold: Least score of an object that counts.
    """
    instances = sample.pred_instances
    kept = instances.scores >= threshold
    labels, scores = instances.labels[kept].numpy(), instances.scores[kept].numpy()
    entries = []
    for index in sorted(set(labels.tolist()), key=lambda i: -scores[labels == i].max()):
        of_class = scores[labels == index]
        count = f'{len(of_class)} x, ' if len(of_class) > 1 else ''
        entries.append(
            Entry(
                model.class_name(index),
                model.colour(index),
                f'{count}score {of_class.max():.2f}',
            )
        )
    return entries


def enlargement(height: int, width: int) -> int:
    """Whole factor by which a small image is enlarged for its picture."""
    return max(1, round(MIN_SIDE / max(height, width)))


def paint_segmentation(
    model: Model, image: np.ndarray, labels: np.ndarray, opacity: float = OPACITY
) -> np.ndarray:
    """Lay the classes' colours over an image.

    Args:
        model: Whose colours they are.
        image: (H, W, C) as the model was given it.
        labels: (H, W).
        opacity: Share of the colours, from 0 to 1.

    Returns:
        (f H, f W, 3), uint8, red first, with the whole factor f of `enlargement`.
    """
    factor = enlargement(*labels.shape)
    size = (labels.shape[1] * factor, labels.shape[0] * factor)
    picture = cv2.resize(to_rgb(image), size, interpolation=cv2.INTER_CUBIC)
    indices, positions = np.unique(labels, return_inverse=True)
    colours = np.array([model.colour(int(i)) for i in indices], np.uint8)
    map_of_colours = colours[positions.reshape(labels.shape)]
    painted = cv2.resize(map_of_colours, size, interpolation=cv2.INTER_NEAREST)
    return cv2.addWeighted(painted, opacity, picture, 1 - opacity, 0)


def paint_detection(
    model: Model, image: np.ndarray, sample: Any, threshold: float
) -> np.ndarray:
    """Draw boxes, masks, names and scores with mmdet's own visualizer.

    Args:
        model: What found the objects.
        image: (H, W, C) as the model was given it.
        sample: mmdet's data sample.
        threshold: Least score of an object that is drawn.

    Returns:
        (H, W, 3), uint8, red first.
    """
    visualizer = model.inferencer.visualizer
    visualizer.dataset_meta = {
        'classes': _names_for_mmdet(model, sample),
        'palette': model.palette or 'random',
    }
    visualizer.add_datasample(
        'image',
        to_rgb(image),
        sample,
        draw_gt=False,
        show=False,
        pred_score_thr=threshold,
    )
    return visualizer.get_image()


def _names_for_mmdet(model: Model, sample: Any) -> list[str]:
    """Names of all classes found, also of those that the model has no name for."""
    labels = sample.pred_instances.labels
    count = max([len(model.classes), *(int(i) + 1 for i in labels)])
    return [model.class_name(i) for i in range(count)]


def draw_result(
    model: Model,
    image: np.ndarray,
    result: Segmentation | Detection,
    threshold: float = 0.3,
) -> tuple[np.ndarray, list[Entry]]:
    """The picture of a prediction without its legend, and the legend.

    Args:
        model: What predicted.
        image: (H, W, C) as the model was given it.
        result: The prediction.
        threshold: Least score of an object that is drawn.
    """
    if isinstance(result, Segmentation):
        legend = segmentation_legend(model, result.labels)
        return paint_segmentation(model, image, result.labels), legend
    picture = paint_detection(model, image, result.sample, threshold)
    return picture, detection_legend(model, result.sample, threshold)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font, which covers more alphabets than Pillow's."""
    return ImageFont.truetype(font_manager.findfont('DejaVu Sans'), size)


def add_legend(
    picture: np.ndarray, entries: Sequence[Entry], fixed: bool = False
) -> np.ndarray:
    """Add a legend on the right of a picture.

    Args:
        picture: (H, W, 3), uint8, red first.
        entries: The lines; with none the legend says that nothing was found.
        fixed: Whether its size depends on the picture's alone, as the frames of a video
            need it; the last lines are then left out where they have no place, and both
            sides are even.

    Returns:
        (H', W', 3) with H' >= H and W' > W; the picture is in its upper left corner.
    """
    height, width = picture.shape[:2]
    size = min(max(height // 32, 12), 40)
    font, line, pad = _font(size), round(1.6 * size), size
    entries = list(entries) or [Entry('nothing found', _BACKGROUND, '')]
    rows = max((height - 2 * pad) // line, 1)
    if fixed and len(entries) > rows:
        rest = Entry(f'and {len(entries) - rows + 1} more', _BACKGROUND, '')
        entries = [*entries[: rows - 1], rest]
    elif len(entries) > rows:
        rows = max(rows, min(len(entries), 12))
    columns = -(-len(entries) // rows)
    rows = -(-len(entries) // columns)
    value_width = max(round(font.getlength(entry.value)) for entry in entries)
    names = [_shorten(entry.name, _MAX_NAME) for entry in entries]
    name_width = max(round(font.getlength(name)) for name in names)
    if fixed:
        name_width = _FIXED_WIDTH * size - value_width
        names = [_fit(name, font, name_width) for name in names]
    column = 4 * pad + name_width + value_width
    canvas_size = [width + pad + columns * column, max(height, 2 * pad + rows * line)]
    if fixed:
        canvas_size = [side + side % 2 for side in (canvas_size[0], height)]
    canvas = Image.new('RGB', (canvas_size[0], canvas_size[1]), _BACKGROUND)
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (name, entry) in enumerate(zip(names, entries, strict=True)):
        left = width + pad + i // rows * column
        top = pad + i % rows * line
        if entry.colour != _BACKGROUND:
            draw.rectangle((left, top, left + size, top + size), entry.colour, _TEXT)
        middle = top + size // 2
        draw.text((left + 2 * pad, middle), name, _TEXT, font, 'lm')
        right = left + 3 * pad + name_width + value_width
        draw.text((right, middle), entry.value, _FAINT, font, 'rm')
    return np.asarray(canvas)


def _fit(name: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """A name shortened until it has at most a width in pixels."""
    for length in range(len(name), 3, -1):
        shortened = _shorten(name, length)
        if font.getlength(shortened) <= width:
            return shortened
    return name[:1]


def _shorten(name: str, length: int) -> str:
    """A class name of at most so many characters, all of them on one line."""
    name = ' '.join(name.split()) or '(no name)'
    return name if len(name) <= length else f'{name[: length - 3]}...'
