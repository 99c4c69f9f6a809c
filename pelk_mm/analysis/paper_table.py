"""The papers' parameters and FLOPs next to ours.

PeLK: arXiv 2403.07589; SLaK: arXiv 2207.03620; RepLKNet: arXiv 2203.06717. The
papers' FLOPs are multiply-adds.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from pelk_mm.files import write_atomically

from .complexity import (
    PAPER_SPARSITY,
    build_on_meta,
    complexity,
    total,
    uniform_density,
)

#: Differences up to which a figure counts as reproduced: parameters within either
#: limit, multiply-adds within theirs.
PARAMETER_LIMIT = 1.5e6
PARAMETER_SHARE = 0.02
MULTIPLY_ADD_SHARE = 0.05


@dataclass(frozen=True)
class Row:
    """One row of a paper's table.

    Attributes:
        name: The model as the paper calls it.
        source: Name of our config, or backbone type and arch of a classifier.
        shape: Height and width of the image.
        parameters: The paper's parameters in millions.
        multiply_adds: The paper's FLOPs in billions.
        results: The paper's accuracies.
    """

    name: str
    source: str | tuple[str, str]
    shape: tuple[int, int]
    parameters: float
    multiply_adds: float
    results: str


def _classifier(
    name: str,
    arch: str,
    side: int,
    parameters: float,
    multiply_adds: float,
    top1: str,
) -> Row:
    backbone = name.split('-')[0]
    return Row(name, (backbone, arch), (side, side), parameters, multiply_adds, top1)


def _upernet(
    name: str,
    parameters: float,
    multiply_adds: float,
    miou: str,
    shape: tuple[int, int] = (512, 2048),
) -> Row:
    return Row(name, _config('upernet', name), shape, parameters, multiply_adds, miou)


def _cascade(
    name: str, parameters: float, multiply_adds: float, box_and_mask: str
) -> Row:
    source = _config('cascade_mask_rcnn', name)
    return Row(name, source, (800, 1280), parameters, multiply_adds, box_and_mask)


def _config(head: str, name: str) -> str:
    stem = name.lower().replace('-', '_').replace(' ', '_')
    data = 'ade20k' if head == 'upernet' else 'coco'
    return f'{head}_{stem}_{data}'


IMAGENET = (
    _classifier('PeLK-T', 'tiny', 224, 29, 5.6, '82.6'),
    _classifier('PeLK-S', 'small', 224, 50, 10.7, '83.9'),
    _classifier('PeLK-B', 'base', 224, 89, 18.3, '84.2'),
    _classifier('PeLK-B', 'base', 384, 89, 54.0, '85.6'),
    _classifier('PeLK-B-101', 'base-101', 384, 90, 68.3, '85.8'),
    _classifier('SLaK-T', 'tiny', 224, 30, 5.0, '82.5'),
    _classifier('SLaK-S', 'small', 224, 55, 9.8, '83.8'),
    _classifier('SLaK-B', 'base', 224, 95, 17.1, '84.0'),
    _classifier('RepLKNet-31B', '31B', 224, 79, 15.3, '83.5'),
    _classifier('RepLKNet-31L', '31L', 384, 172, 96.0, '86.6'),
    _classifier('RepLKNet-XL', 'XL', 320, 335, 128.7, '87.8'),
)
SEGMENTATION = (
    _upernet('PeLK-T', 62, 970, '48.1'),
    _upernet('PeLK-S', 84, 1077, '49.7'),
    _upernet('PeLK-B', 126, 1237, '50.4'),
    _upernet('PeLK-B-101', 126, 1339, '50.6'),
    _upernet('SLaK-T', 65, 957, '47.6'),
    _upernet('SLaK-S', 91, 1057, '49.4'),
    _upernet('SLaK-B', 135, 1210, '50.2'),
    _upernet('RepLKNet-31B', 112, 1170, '49.9'),
    _upernet('RepLKNet-31B 22K', 112, 1829, '51.5', (640, 2560)),
    _upernet('RepLKNet-31L', 207, 2404, '52.4', (640, 2560)),
    _upernet('RepLKNet-XL', 374, 3431, '55.2', (640, 2560)),
    Row(
        'RepLKNet-31B Cityscapes',
        'upernet_replknet_31b_cityscapes',
        (1024, 2048),
        110,
        2315,
        '83.1',
    ),
)
DETECTION = (
    _cascade('PeLK-T', 86, 770, '51.4 / 44.6'),
    _cascade('PeLK-S', 108, 874, '52.2 / 45.3'),
    _cascade('PeLK-B', 147, 1028, '52.9 / 45.9'),
    _cascade('PeLK-B-101', 147, 1127, '53.1 / 46.1'),
    _cascade('SLaK-B', 152, 1001, '52.5 / 45.5'),
    _cascade('RepLKNet-31B', 137, 965, '52.2 / 45.2'),
    _cascade('RepLKNet-31B 22K', 137, 965, '53.0 / 46.0'),
    _cascade('RepLKNet-31L', 229, 1321, '53.9 / 46.5'),
    _cascade('RepLKNet-XL', 392, 1958, '55.5 / 48.0'),
    Row(
        'RepLKNet-31B FCOS 2x',
        'fcos_replknet_31b_coco',
        (800, 1280),
        87,
        437,
        '47.0 / -',
    ),
)
TABLES = {
    'ImageNet-1K: image classification (top-1)': IMAGENET,
    'UperNet: ADE20K and Cityscapes (mIoU, single-scale)': SEGMENTATION,
    'COCO: Cascade Mask R-CNN 3x and FCOS 2x (box / mask AP)': DETECTION,
}

#: Lines before and after the tables in a page.
BEGIN, END = '<!-- paper_table: begin -->', '<!-- paper_table: end -->'


class _Head(nn.Module):
    """A classifier's norm and linear layer after the last map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        return self.fc(self.norm(maps[-1].mean((-2, -1))))


def build_row(row: Row, configs: Path) -> tuple[nn.Module, str]:
    """Build a row's model on the meta device.

    Args:
        row: The row.
        configs: Folder of our configs.

    Returns:
        The model and its backbone's type.
    """
    if isinstance(row.source, str):
        cfg = Config.fromfile(configs / f'{row.source}.py')
        return build_on_meta(cfg), cfg.model.backbone.type
    kind, arch = row.source
    with torch.device('meta'):
        model = nn.Module()
        backbone = MODELS.build(dict(type=kind, arch=arch))
        # A classifier has no norms after the stages; its head has one.
        for stage in range(4):
            setattr(backbone, f'norm{stage}', None)
        model.backbone = backbone
        model.head = _Head(backbone.channels[-1])
    return model, kind


@dataclass(frozen=True)
class Figures:
    """Our figures for a row, in millions and billions.

    Attributes:
        parameters: Parameters that are not zero.
        multiply_adds: Multiply-adds as the papers count.
        computed: Multiply-adds that our operators do.
    """

    parameters: float
    multiply_adds: float
    computed: float

    def reproduces(self, row: Row) -> bool:
        """Whether both figures of the paper are within the limits."""
        difference = abs(self.parameters - row.parameters) * 1e6
        share = difference / (row.parameters * 1e6)
        return (difference <= PARAMETER_LIMIT or share <= PARAMETER_SHARE) and (
            abs(self.multiply_adds / row.multiply_adds - 1) <= MULTIPLY_ADD_SHARE
        )


def measure(row: Row, configs: Path) -> Figures:
    """Our figures for a row, counted as its paper counts."""
    model, kind = build_row(row, configs)
    density = uniform_density(PAPER_SPARSITY.get(kind, 0.0))
    size = total(complexity(model, row.shape, density))
    return Figures(size.nonzeros / 1e6, size.paper / 1e9, size.computed / 1e9)


def format_table(rows: Iterable[Row], configs: Path) -> Iterator[str]:
    """Lines of a Markdown table of the papers' figures and ours."""
    yield (
        '| model | H x W | parameters: paper | ours | difference | multiply-adds: '
        "paper | ours | difference | computed here | paper's result | within |"
    )
    yield '|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|'
    for row in rows:
        ours = measure(row, configs)
        height, width = row.shape
        more = ours.parameters - row.parameters
        share = 100 * (ours.multiply_adds / row.multiply_adds - 1)
        yield (
            f'| {row.name} | {height} x {width} '
            f'| {row.parameters} M | {ours.parameters:.1f} M | {more:+.1f} M '
            f'| {row.multiply_adds} G | {ours.multiply_adds:.1f} G | {share:+.1f} % '
            f'| {ours.computed:.1f} G | {row.results} '
            f'| {"yes" if ours.reproduces(row) else "**no**"} |'
        )


def format_tables(configs: Path) -> Iterator[str]:
    """Lines of all tables with their headings."""
    for heading, rows in TABLES.items():
        yield f'### {heading}'
        yield ''
        yield from format_table(rows, configs)
        yield ''


def replace_tables(page: Path, tables: str) -> None:
    """Put the tables between the two marks of a page.

    Raises:
        FileNotFoundError: If there is no such page.
        ValueError: If the page lacks a mark.
    """
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f'{page} lacks the lines {BEGIN} and {END}')
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    with write_atomically(page) as temporary:
        temporary.write_text(f'{before}{BEGIN}\n\n{tables}\n{END}{after}')
