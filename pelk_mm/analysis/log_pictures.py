"""Curves of training runs as a figure, a panel for each key."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from .logs import Point, Run

#: Colours of the runs, told apart by colour-blind readers too; more runs have other
#: lines.
COLOURS = (
    '#4477aa',
    '#ee7733',
    '#228833',
    '#aa3377',
    '#66ccee',
    '#ccbb44',
    '#777777',
)
LINES = ('-', '--', ':', '-.')


def picture_formats() -> list[str]:
    """Endings of the files that matplotlib can write."""
    return sorted(FigureCanvasAgg.get_supported_filetypes())


def draw_runs(
    runs: Sequence[Run],
    names: Sequence[str],
    keys: Sequence[str],
    path: Path,
    smooth: int = 1,
    file_format: str = 'png',
) -> None:
    """Draw the training as lines against the iteration, the validation as points.

    Args:
        runs: The runs.
        names: Their names in the legend.
        keys: What to draw, a panel for each.
        path: The picture to write.
        smooth: Over how many records of the training to average; what was logged
            stays visible behind.
        file_format: Its format, one of `picture_formats`.
    """
    columns = min(len(keys), 3)
    lines = ceil(len(keys) / columns)
    legend_rows = ceil(len(runs) / columns) if len(runs) > 1 else 0
    figure = Figure(
        figsize=(max(5.0 * columns, 6), 3.6 * lines + 0.25 * legend_rows),
        layout='constrained',
    )
    FigureCanvasAgg(figure)
    # One scale for all, so that what happens at one time is seen at one place.
    panels = list(figure.subplots(lines, columns, squeeze=False, sharex=True).flat)
    for axes in panels[len(keys) :]:
        axes.remove()
    for key, axes in zip(keys, panels, strict=False):
        for number, run in enumerate(runs):
            _draw_curves(axes, run.find(key), _style(number), smooth)
        units = dict.fromkeys(run.unit for run in runs)
        axes.set_title(key, parse_math=False)
        axes.set(xlabel=' or '.join(units))
        axes.tick_params(labelbottom=True)
        axes.xaxis.set_major_formatter(EngFormatter(sep=''))
        axes.grid(color='#e6e6e6')
        axes.spines[['top', 'right']].set_visible(False)
    if len(runs) > 1:
        handles = [
            Line2D([], [], marker='o', markersize=4, label=name, **_style(number))
            for number, name in enumerate(names)
        ]
        legend = figure.legend(
            handles=handles, loc='outside lower center', ncols=columns, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    else:
        figure.suptitle(names[0], fontsize=10, parse_math=False)
    figure.savefig(path, format=file_format, dpi=120)


def _style(number: int) -> dict[str, Any]:
    lines = LINES[number // len(COLOURS) % len(LINES)]
    return dict(color=COLOURS[number % len(COLOURS)], linestyle=lines)


def _draw_curves(
    axes: Axes,
    curves: tuple[Sequence[Point], Sequence[Point]],
    style: dict[str, Any],
    smooth: int,
) -> None:
    training, validation = curves
    if training:
        steps, values = np.array(training, dtype=float).T
        if smooth > 1:
            axes.plot(steps, values, **style, linewidth=0.8, alpha=0.3)
            values = moving_average(values, smooth)
        # A single record would be no line.
        marker = '.' if len(steps) == 1 else None
        axes.plot(steps, values, **style, linewidth=1.4, marker=marker)
    if validation:
        points = np.array(validation, dtype=float).T
        axes.plot(*points, **style, linewidth=0.8, marker='o', markersize=4)


def moving_average(values: np.ndarray, count: int) -> np.ndarray:
    """Mean of each value and those before it, ``count`` together, fewer at the start.

    Values that are not finite are left out of the means.
    """
    finite = np.isfinite(values)
    sums = np.cumsum(np.where(finite, values, 0.0))
    counts = np.cumsum(finite)
    sums[count:] -= sums[:-count].copy()
    counts[count:] -= counts[:-count].copy()
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
