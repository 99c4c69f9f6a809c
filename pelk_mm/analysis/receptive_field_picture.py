"""Receptive fields of several models as a picture and as tables."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from .receptive_field import Field, Square, log_scaled, squares

#: Colours of the squares, from the smallest share to the largest.
SQUARE_COLOURS = ('#d55e00', '#cc79a7', '#0072b2', '#222222')

#: What is below it has the lightest colour. Colours are logarithmic once more: far from
#: the centre there is little in each pixel and much in all of them.
_LIGHTEST = 1e-4

#: Most panels in a row.
_COLUMNS = 4

#: Inches that a panel takes, and dots per inch.
_PANEL, _DPI = 3.1, 110

_COLOUR_MAP = 'Greens'


@dataclass(frozen=True)
class Measured:
    """What was measured of a model.

    Attributes:
        name: The model.
        weights: Where its weights are from, in words.
        field: The contributions.
        squares: Those of the log-scaled contributions.
        unscaled: Those of the contributions themselves.
    """

    name: str
    weights: str
    field: Field
    squares: list[Square]
    unscaled: list[Square]

    @classmethod
    def of(cls, name: str, weights: str, field: Field) -> 'Measured':
        """Find the squares of a model's contributions.

        Raises:
            ValueError: If there are no contributions.
        """
        try:
            mean = field.mean
            return cls(name, weights, field, squares(log_scaled(mean)), squares(mean))
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from error


def describe_images(fields: Sequence[Field]) -> str:
    """How many images of which size fields were measured on, in words."""
    height, width = fields[0].total.shape
    counts = sorted({each.images for each in fields})
    number = ' to '.join(map(str, {counts[0]: None, counts[-1]: None}))
    plural = '' if counts[-1] == 1 else 's'
    return f'{number} image{plural} of {height} x {width}'


def _percent(share: float) -> str:
    """A share as a percentage."""
    return f'{100 * share:g} %'


# ------------------------------------------------------------------------ tables


def _table(rows: Sequence[tuple[Measured, list[Square]]]) -> list[str]:
    """A Markdown table of areas and sides."""
    shares = [_percent(each.share) for each in rows[0][1]]
    lines = [
        f'| model | weights | {" | ".join(shares)} |',
        f'|---|---|{"--:|" * len(shares)}',
    ]
    for each, found in rows:
        cells = [f'{100 * square.area:.1f} % ({square.side})' for square in found]
        lines.append(f'| {each.name} | {each.weights} | {" | ".join(cells)} |')
    return lines


def format_tables(measured: Sequence[Measured]) -> str:
    """Lay out the areas of several models as Markdown."""
    fields = [each.field for each in measured]
    lines = [
        f'Area of the smallest centred square that holds a share of the contributions, '
        f'over that of the image, and its side in pixels. {describe_images(fields)}.',
        '',
        'Log-scaled contributions, as in the papers:',
        '',
        *_table([(each, each.squares) for each in measured]),
        '',
        'The contributions themselves, without the logarithm:',
        '',
        *_table([(each, each.unscaled) for each in measured]),
    ]
    for each in measured:
        if each.field.skipped:
            lines += [
                '',
                f'{each.name}: without {", ".join(each.field.skipped)}, on which the '
                'gradient is NaN or infinite.',
            ]
    return '\n'.join(lines)


def as_json(measured: Sequence[Measured]) -> str:
    """What the tables say, and the settings, as JSON."""

    def entry(each: Measured) -> dict[str, Any]:
        mean = each.field.mean
        return dict(
            name=each.name,
            weights=each.weights,
            images=each.field.images,
            skipped=each.field.skipped,
            largest_contribution=float(mean.max()),
            log_scaled=[asdict(square) for square in each.squares],
            unscaled=[asdict(square) for square in each.unscaled],
            settings=json.loads(each.field.key),
        )

    return json.dumps(dict(models=[entry(each) for each in measured]), indent=1) + '\n'


# ----------------------------------------------------------------------- picture


def draw_fields(
    measured: Sequence[Measured], path: Path, outlines: bool = True
) -> None:
    """Draw the log-scaled contributions of several models side by side.

    All panels have one colour scale, a logarithmic one. Pixels are averaged where a
    panel has fewer.

    Args:
        measured: The models.
        path: The picture, written as PNG.
        outlines: Whether to draw the squares of `Measured.squares`.
    """
    columns = min(len(measured), _COLUMNS)
    rows = ceil(len(measured) / columns)
    figure = Figure(
        figsize=(max(_PANEL * columns, 4.5) + 0.8, (_PANEL + 0.45) * rows + 1.0),
        layout='constrained',
    )
    FigureCanvasAgg(figure)
    fields = [each.field for each in measured]
    figure.suptitle(
        f'Effective receptive fields, {describe_images(fields)}', fontsize=11
    )
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(measured) :]:
        axes.set_visible(False)
    shown = [
        _draw_panel(panels.flat[i], each, outlines) for i, each in enumerate(measured)
    ]
    bar = figure.colorbar(shown[0], ax=panels, shrink=0.8, aspect=30, pad=0.01)
    bar.set_label('log10(1 + contribution) / maximum', fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if outlines:
        figure.legend(
            handles=[
                Line2D([], [], color=colour, label=_percent(square.share))
                for colour, square in zip(
                    SQUARE_COLOURS, measured[0].squares, strict=True
                )
            ],
            title='square that holds',
            loc='outside lower center',
            ncols=len(SQUARE_COLOURS),
            frameon=False,
            fontsize=9,
            title_fontsize=9,
        )
    drawn = BytesIO()
    figure.savefig(drawn, format='png', dpi=_DPI)
    # Fields are noisy: with few colours they take a third of the bytes.
    indexed = Image.open(drawn).convert('RGB')
    indexed = indexed.quantize(palette=_palette(), dither=Image.Dither.NONE)
    indexed.save(path, format='png', optimize=True)


def _palette() -> Image.Image:
    """The colours of the picture: of fields, text and outlines."""
    scale = colormaps[_COLOUR_MAP]
    colours = [scale(level)[:3] for level in np.linspace(0, 1, 64)]
    colours += [(grey, grey, grey) for grey in np.linspace(0, 1, 32)]
    colours += [to_rgb(colour) for colour in SQUARE_COLOURS]
    image = Image.new('P', (1, 1))
    image.putpalette([round(255 * part) for colour in colours for part in colour])
    return image


def _draw_panel(axes: Any, each: Measured, outlines: bool) -> Any:
    """Draw one model's contributions; returns what the colour bar is for."""
    mean = each.field.mean
    height, width = mean.shape
    image = axes.imshow(
        np.maximum(log_scaled(mean), _LIGHTEST),
        cmap=_COLOUR_MAP,
        norm=LogNorm(_LIGHTEST, 1),
        interpolation='antialiased',
    )
    title = textwrap.shorten(each.name, 40, placeholder='...')
    axes.set_title(title, fontsize=10, pad=16)
    weights = textwrap.shorten(each.weights, 48, placeholder='...')
    axes.text(
        0.5, 1.015, weights, transform=axes.transAxes, ha='center', va='bottom',
        fontsize=7.5, color='#555555',
    )  # fmt: skip
    ticks = [np.linspace(0, side, 5).round().astype(int) for side in (width, height)]
    axes.set(xticks=ticks[0], yticks=ticks[1])
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.tick_params(labelsize=7)
    axes.set_xlabel('pixels', fontsize=8)
    if outlines:
        for colour, square in zip(SQUARE_COLOURS, each.squares, strict=True):
            corner = (width // 2, height // 2)
            left, top = (c - square.side / 2 for c in corner)
            axes.add_patch(
                Rectangle(
                    (left, top), square.side, square.side, fill=False, color=colour
                )
            )
    return image
