"""The papers' parameters and FLOPs next to ours.

PeLK: arXiv 2403.07589; SLaK: arXiv 2207.03620; RepLKNet: arXiv 2203.06717. The
papers' FLOPs are multiply-adds.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from .complexity import complexity, paper_sparsity, total, uniform_density
from .from_config import build_on_meta

#: Differences up to which a figure counts as reproduced: parameters within either
#: limit, the first in millions, multiply-adds within theirs.
PARAMETER_LIMIT = 1.5
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


def _config_rows(source: str, *rows: tuple[Any, ...]) -> list[Row]:
    """Rows whose source has the model's name, in our spelling, at the braces."""
    return [
        Row(name, source.format(re.sub('[- ]', '_', name.lower())), *rest)
        for name, *rest in rows
    ]


IMAGENET = [
    Row(name, (name.split('-')[0], arch), (side, side), parameters, adds, top1)
    for name, arch, side, parameters, adds, top1 in (
        ('PeLK-T', 'tiny', 224, 29, 5.6, '82.6'),
        ('PeLK-S', 'small', 224, 50, 10.7, '83.9'),
        ('PeLK-B', 'base', 224, 89, 18.3, '84.2'),
        ('PeLK-B', 'base', 384, 89, 54.0, '85.6'),
        ('PeLK-B-101', 'base-101', 384, 90, 68.3, '85.8'),
        ('SLaK-T', 'tiny', 224, 30, 5.0, '82.5'),
        ('SLaK-S', 'small', 224, 55, 9.8, '83.8'),
        ('SLaK-B', 'base', 224, 95, 17.1, '84.0'),
        ('RepLKNet-31B', '31B', 224, 79, 15.3, '83.5'),
        ('RepLKNet-31L', '31L', 384, 172, 96.0, '86.6'),
        ('RepLKNet-XL', 'XL', 320, 335, 128.7, '87.8'),
    )
]
SEGMENTATION = [
    *_config_rows(
        'upernet_{}_ade20k',
        ('PeLK-T', (512, 2048), 62, 970, '48.1'),
        ('PeLK-S', (512, 2048), 84, 1077, '49.7'),
        ('PeLK-B', (512, 2048), 126, 1237, '50.4'),
        ('PeLK-B-101', (512, 2048), 126, 1339, '50.6'),
        ('SLaK-T', (512, 2048), 65, 957, '47.6'),
        ('SLaK-S', (512, 2048), 91, 1057, '49.4'),
        ('SLaK-B', (512, 2048), 135, 1210, '50.2'),
        ('RepLKNet-31B', (512, 2048), 112, 1170, '49.9'),
        ('RepLKNet-31B 22K', (640, 2560), 112, 1829, '51.5'),
        ('RepLKNet-31L', (640, 2560), 207, 2404, '52.4'),
        ('RepLKNet-XL', (640, 2560), 374, 3431, '55.2'),
    ),
    *_config_rows(
        'upernet_{}', ('RepLKNet-31B Cityscapes', (1024, 2048), 110, 2315, '83.1')
    ),
]
DETECTION = [
    *_config_rows(
        'cascade_mask_rcnn_{}_coco',
        ('PeLK-T', (800, 1280), 86, 770, '51.4 / 44.6'),
        ('PeLK-S', (800, 1280), 108, 874, '52.2 / 45.3'),
        ('PeLK-B', (800, 1280), 147, 1028, '52.9 / 45.9'),
        ('PeLK-B-101', (800, 1280), 147, 1127, '53.1 / 46.1'),
        ('SLaK-B', (800, 1280), 152, 1001, '52.5 / 45.5'),
        ('RepLKNet-31B', (800, 1280), 137, 965, '52.2 / 45.2'),
        ('RepLKNet-31B 22K', (800, 1280), 137, 965, '53.0 / 46.0'),
        ('RepLKNet-31L', (800, 1280), 229, 1321, '53.9 / 46.5'),
        ('RepLKNet-XL', (800, 1280), 392, 1958, '55.5 / 48.0'),
    ),
    *_config_rows(
        'fcos_replknet_31b_coco',
        ('RepLKNet-31B FCOS 2x', (800, 1280), 87, 437, '47.0 / -'),
    ),
]
TABLES = {
    'ImageNet-1K: image classification (top-1)': IMAGENET,
    'UperNet: ADE20K and Cityscapes (mIoU, single-scale)': SEGMENTATION,
    'COCO: Cascade Mask R-CNN 3x and FCOS 2x (box / mask AP)': DETECTION,
}


class _Head(nn.Sequential):
    """A classifier's norm and linear layer after the last map."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.LayerNorm(channels), nn.Linear(channels, 1000))

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        return super().forward(maps[-1].mean((-2, -1)))


def build_row(row: Row, configs: Path) -> nn.Module:
    """Build a row's model on the meta device, from a folder of our configs."""
    if isinstance(row.source, str):
        return build_on_meta(Config.fromfile(configs / f'{row.source}.py'))
    kind, arch = row.source
    with torch.device('meta'):
        model = nn.Module()
        backbone = MODELS.build(dict(type=kind, arch=arch))
        # A classifier has no norms after the stages; its head has one.
        for stage in range(4):
            setattr(backbone, f'norm{stage}', None)
        model.backbone = backbone
        model.head = _Head(backbone.channels[-1])
    return model


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
        limit = max(PARAMETER_LIMIT, PARAMETER_SHARE * row.parameters)
        share = abs(self.multiply_adds / row.multiply_adds - 1)
        return (
            abs(self.parameters - row.parameters) <= limit
            and share <= MULTIPLY_ADD_SHARE
        )


def measure(row: Row, configs: Path) -> Figures:
    """Our figures for a row, counted as its paper counts."""
    model = build_row(row, configs)
    density = uniform_density(paper_sparsity(model))
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
