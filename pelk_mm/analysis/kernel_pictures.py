"""Pictures of a backbone's large kernels, one page a stage."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .stage_kernels import Block, StageKernels

#: Colour maps of weights, of what is not negative, and of shares.
DIVERGING, SEQUENTIAL, SHARES = 'RdBu_r', 'viridis', 'Greys'
#: Colour of positions where a kernel has no tap.
NO_TAP = '#dddddd'
#: Share of the taps whose weights are within the limits of the colours.
WITHIN = 0.99
#: Channels that are shown unless told otherwise: of blocks that have a single kernel
#: side by side, of the others, whose parts are side by side, below each other.
CHANNELS, CHANNELS_IN_PARTS = 4, 2

#: Inches: side of a panel, space to the right of it for a colour bar, margins on the
#: left and above, lines of titles, a row with its titles, the row of the densities.
PANEL, GAP, LEFT, TOP, LINE, ROW, LAST_ROW = 1.8, 0.55, 0.65, 0.2, 0.2, 2.6, 2.3

_TIMES = '\N{MULTIPLICATION SIGN}'

Axes = Any
Panel = tuple[str, Tensor, Tensor]


class _Page:
    """A figure with rows of square panels at fixed places.

    Args:
        title: Lines at the top.
        columns: Panels in a row.
        height: Inches that the rows need.
    """

    def __init__(self, title: Sequence[str], columns: int, height: float) -> None:
        top = TOP + LINE * len(title)
        # Titles are wider than a single panel.
        self.width = LEFT + max(columns, 3) * (PANEL + GAP)
        self.height = top + height
        self.figure = Figure(figsize=(self.width, self.height))
        FigureCanvasAgg(self.figure)
        self.columns = columns
        self.below = top
        for number, line in enumerate(title):
            size = 10 if number == 0 else 8.5
            self.text(line, TOP + LINE * number, size)

    def text(self, text: str, below: float, size: float) -> None:
        """Write a line at the left, that many inches below the upper edge."""
        self.figure.text(
            0.1 / self.width, 1 - below / self.height, text, fontsize=size, va='center'
        )

    def row(self, title: str, height: float) -> None:
        """Begin a row with a title."""
        self.text(title, self.below + LINE / 2, 8.5)
        self.upper = self.below + 2.2 * LINE
        self.below += height

    def axes(self, left: float, width: float, height: float) -> Axes:
        """Axes in the row, all in inches."""
        return self.figure.add_axes(
            (
                left / self.width,
                1 - (self.upper + height) / self.height,
                width / self.width,
                height / self.height,
            )
        )

    def image(self, column: int, title: str, values: Any, **kwargs: Any) -> Any:
        """Draw a map (K, K) into a column of the row, its axes in taps."""
        axes = self.axes(LEFT + column * (PANEL + GAP), PANEL, PANEL)
        side = len(values) / 2
        image = axes.imshow(
            values,
            extent=(-side, side, side, -side),  # taps at whole numbers, 0 in the centre
            interpolation='nearest',
            **kwargs,
        )
        axes.set_facecolor(NO_TAP)
        axes.set_title(title, fontsize=7.5, pad=4)
        reach = len(values) // 2
        axes.set_xticks(sorted({-reach, 0, reach}))
        axes.set_yticks(sorted({-reach, 0, reach}))
        axes.tick_params(labelsize=6.5, length=2, labelleft=column == 0)
        if column == 0:
            axes.set_ylabel('taps from the centre', fontsize=7)
        return image

    def colour_bar(self, column: int, image: Any, extend: str = 'neither') -> Any:
        """Draw the colour bar of an image to the right of a column."""
        left = LEFT + column * (PANEL + GAP) + PANEL + 0.06
        axes = self.axes(left, 0.08, PANEL)
        bar = self.figure.colorbar(image, cax=axes, extend=extend)
        bar.ax.tick_params(labelsize=6, length=2, pad=1)
        bar.ax.yaxis.offsetText.set_fontsize(6)
        return bar


def choose_blocks(count: int, shown: int) -> list[int]:
    """Indices of blocks spread evenly from the first to the last."""
    if count <= shown:
        return list(range(count))
    return sorted(set(np.linspace(0, count - 1, shown).round().astype(int).tolist()))


def draw_stage(
    kernels: StageKernels, title: str, blocks: int = 3, channels: int | None = None
) -> Figure:
    """Draw the page of a stage.

    Args:
        kernels: The stage.
        title: What the page says above the stage.
        blocks: How many of the blocks to show.
        channels: How many channels to show of each, those with the largest kernels;
            by default 4 or, where a kernel is shown in its parts, 2.
    """
    shown = [kernels.blocks[i] for i in choose_blocks(len(kernels.blocks), blocks)]
    rows = [(block, _panels(block, channels)) for block in shown]
    before = 1 + kernels.sparse  # panels of all channels, left of those of some
    columns = before + max(len(panels) for _, lines in rows for panels in lines)
    height = ROW * (len(_flat(rows)) + (kernels.sharing_grid is not None))
    height += LAST_ROW * kernels.sparse
    page = _Page([title, *_describe(kernels)], columns, height)
    if kernels.sharing_grid is not None:
        _draw_grid(page, kernels, channels or CHANNELS)
    for block, lines in rows:
        for number, panels in enumerate(lines):
            page.row(block.name if number == 0 else '', ROW)
            if number == 0:
                _draw_all_channels(page, block, kernels.sparse)
            _draw_kernels(page, before, panels)
    if kernels.sparse:
        _draw_densities(page, kernels.densities)
    return page.figure


def write_pages(pages: Sequence[Figure], path: Path) -> None:
    """Write pages into one PDF, the same bytes for the same pages."""
    with PdfPages(path, metadata={'CreationDate': None}) as pdf:
        for page in pages:
            pdf.savefig(page)


def _flat(rows: Sequence[tuple[Block, list[list[Panel]]]]) -> list[list[Panel]]:
    return [panels for _, lines in rows for panels in lines]


def _describe(kernels: StageKernels) -> list[str]:
    block = kernels.blocks[0]
    count = len(block.parts[0].weight)
    of = f' of {kernels.width}' * (kernels.sharing_grid is not None)
    return [
        f'stage {kernels.number}: {len(kernels.blocks)} blocks with kernels of '
        f'{block.size} {_TIMES} {block.size}, for {count}{of} channels',
        *kernels.notes,
    ]


def _panels(block: Block, channels: int | None) -> list[list[Panel]]:
    """Title, kernel (K, K) and taps (K, K) of each panel, by row of the page."""
    kernel, taps = block.kernel(), block.taps()
    if len(block.parts) == 1:
        chosen = block.largest(channels or CHANNELS)
        return [[(f'channel {i}', kernel[i], taps) for i in chosen]]
    rows = []
    for i in block.largest(channels or CHANNELS_IN_PARTS):
        parts = []
        for part in block.parts:
            height, width = part.weight.shape[-2:]
            title = f'channel {i}: {part.name} {height} {_TIMES} {width}'
            parts.append((title, block.framed(part.weight[i]), block.taps(part)))
        rows.append([*parts, (f'channel {i}: their sum', kernel[i], taps)])
    return rows


def _draw_grid(page: _Page, kernels: StageKernels, channels: int) -> None:
    """Sharing grid, and the positional embedding's mean and largest channels."""
    grid = kernels.sharing_grid
    assert grid is not None
    missing = kernels.embedding is None
    page.row('sharing grid' + ' and positional embedding h' * (not missing), ROW)
    sizes = np.repeat(grid, grid)
    areas = np.outer(sizes, sizes)
    image = page.image(
        0,
        f'{len(grid)} {_TIMES} {len(grid)} weights and the taps of each',
        areas,
        cmap=SEQUENTIAL,
        norm=LogNorm(1, max(2, areas.max())),
    )
    edges = np.cumsum([0, *grid]) - len(sizes) / 2
    for draw in (image.axes.hlines, image.axes.vlines):
        draw(edges, edges[0], edges[-1], color='white', linewidth=0.3)
    bar = page.colour_bar(0, image)
    squares = [size**2 for size in sorted(set(grid))]
    bar.set_ticks(squares, labels=list(map(str, squares)))
    bar.ax.minorticks_off()
    if kernels.embedding is None:
        return
    embedding = kernels.embedding
    everywhere = torch.ones(embedding.shape[-2:], dtype=torch.bool)
    _draw_map(page, 1, 'mean |h| of all channels', embedding.abs().mean(0), everywhere)
    norms = embedding.flatten(1).norm(dim=1).argsort(descending=True, stable=True)
    chosen = norms[: min(channels, page.columns - 2)].tolist()
    panels = [(f'h of channel {i}', embedding[i], everywhere) for i in chosen]
    _draw_kernels(page, 2, panels)


def _draw_all_channels(page: _Page, block: Block, sparse: bool) -> None:
    """What a block's channels have in common."""
    mean, taps = block.kernel().abs().mean(0), block.taps()
    _draw_map(page, 0, 'mean |w| of all channels', mean, taps)
    if sparse:
        title = 'share of channels with a weight'
        _draw_map(page, 1, title, block.shares(), taps, cmap=SHARES, vmax=1)


def _draw_map(
    page: _Page, column: int, title: str, values: Tensor, taps: Tensor, **kwargs: Any
) -> None:
    """A map (K, K) of what is not negative, with a colour bar of its own."""
    settings = {'cmap': SEQUENTIAL, 'vmin': 0, **kwargs}
    image = page.image(column, title, _masked(values, taps), **settings)
    page.colour_bar(column, image)


def _draw_kernels(page: _Page, column: int, panels: Sequence[Panel]) -> None:
    """Kernels side by side with the same colours and one colour bar."""
    if not panels:
        return
    weights = torch.cat([kernel[taps].abs() for _, kernel, taps in panels])
    top = weights.max().item()
    limit = float(np.quantile(weights.numpy(), WITHIN)) or top or 1.0
    for place, (title, kernel, taps) in enumerate(panels, column):
        image = page.image(
            place,
            title,
            _masked(kernel, taps),
            cmap=DIVERGING,
            vmin=-limit,
            vmax=limit,
        )
    extend = 'both' if top > limit else 'neither'
    page.colour_bar(column + len(panels) - 1, image, extend)


def _masked(values: Tensor, taps: Tensor) -> np.ndarray:
    return np.ma.masked_where(~taps.numpy(), values.numpy())


def _draw_densities(page: _Page, densities: Mapping[str, Mapping[int, float]]) -> None:
    """Share of non-zero weights of each layer against the number of its block."""
    page.row('density of each layer', LAST_ROW)
    axes = page.axes(LEFT, page.width - LEFT - 1.7, LAST_ROW - 0.95)
    markers = 'osD^v<>pX'
    for number, (kind, shares) in enumerate(densities.items()):
        axes.plot(
            list(shares),
            list(shares.values()),
            marker=markers[number % len(markers)],
            markersize=4,
            linewidth=1,
            label=kind,
        )
    axes.set(ylim=(0, 1.05))
    axes.set_xlabel('block', fontsize=7)
    axes.set_ylabel('share of non-zeros', fontsize=7)
    axes.tick_params(labelsize=6.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color='#e6e6e6')
    axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
