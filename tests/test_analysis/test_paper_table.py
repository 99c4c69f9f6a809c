from functools import cache
from pathlib import Path

import pytest

from pelk_mm.analysis.complexity import complexity, paper_sparsity, total
from pelk_mm.analysis.paper_table import (
    DETECTION,
    IMAGENET,
    SEGMENTATION,
    TABLES,
    build_row,
    measure,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
ROWS = [*IMAGENET, *SEGMENTATION, *DETECTION]

#: Rows with parameters beyond the limits: see the notes in docs/model_zoo.md.
EXPLAINED = {
    ('PeLK-S', 50),
    ('PeLK-B', 89),
    ('PeLK-B-101', 90),
    ('SLaK-S', 91),
    ('SLaK-B', 135),
    ('RepLKNet-31B Cityscapes', 110),
}


#: Rows that are counted in every run, one of each table and one outside the limits.
COUNTED = (
    ('PeLK-T', 'PeLK'),
    ('PeLK-S', 'PeLK'),
    ('SLaK-T', 'upernet_slak_t_ade20k'),
    ('RepLKNet-31B FCOS 2x', 'fcos_replknet_31b_coco'),
)


def each(rows):
    """One test per row; those not in `COUNTED` are slow ones."""
    return pytest.mark.parametrize(
        'row',
        [
            pytest.param(row, marks=() if is_counted(row) else pytest.mark.slow)
            for row in rows
        ],
        ids=lambda row: f'{row.name}, {row.shape[0]} x {row.shape[1]}',
    )


def is_counted(row):
    source = row.source if isinstance(row.source, str) else row.source[0]
    return (row.name, source) in COUNTED


@cache
def figures(row):
    return measure(row, CONFIGS)


def test_counted_and_explained_rows_exist():
    assert sum(map(is_counted, ROWS)) == len(COUNTED)
    assert {(row.name, row.parameters) for row in ROWS} >= EXPLAINED


@each(ROWS)
def test_figures_are_reproduced_or_explained(row):
    ours = figures(row)
    assert ours.reproduces(row) == ((row.name, row.parameters) not in EXPLAINED)
    assert ours.multiply_adds == pytest.approx(row.multiply_adds, rel=0.05)


@pytest.mark.slow
def test_larger_kernels_add_what_the_paper_says():
    base, larger = (
        figures(row).multiply_adds
        for row in SEGMENTATION
        if row.name in ('PeLK-B', 'PeLK-B-101')
    )
    assert larger - base == pytest.approx(102, abs=1)


def test_page_has_all_tables_and_rows():
    page = (ROOT / 'docs' / 'model_zoo.md').read_text()
    for heading in TABLES:
        assert f'### {heading}\n' in page
    for row in ROWS:
        start = f'| {row.name} | {row.shape[0]} x {row.shape[1]} | {row.parameters} M |'
        (line,) = (
            line
            for line in page.splitlines()
            if line.startswith(start) and f'| {row.multiply_adds} G |' in line
        )
        assert f'| {row.results} |' in line


@each(ROWS)
def test_page_holds_the_figures(row):
    ours = figures(row)
    page = (ROOT / 'docs' / 'model_zoo.md').read_text()
    line = next(
        line
        for line in page.splitlines()
        if line.startswith(f'| {row.name} | {row.shape[0]} x {row.shape[1]} |')
        and f'| {row.multiply_adds} G | {ours.multiply_adds:.1f} G |' in line
    )
    assert f'| {row.parameters} M | {ours.parameters:.1f} M |' in line
    assert f'| {ours.computed:.1f} G | {row.results} |' in line


@each([r for r in ROWS if r.name.startswith('PeLK')])
def test_paper_counts_pelk_without_the_positional_embedding(row):
    model = build_row(row, CONFIGS)
    embedding = sum(
        p.numel() for n, p in model.named_parameters() if n.endswith('embedding')
    )
    assert abs(figures(row).parameters - embedding / 1e6 - row.parameters) < 1.5


@each([r for r in SEGMENTATION if r.name.startswith('SLaK')])
def test_paper_counts_slaks_stripes_dense_in_segmenters(row):
    model = build_row(row, CONFIGS)
    sparsity = paper_sparsity(model)

    def density(name, parameter):
        sparse = name.startswith('backbone.') and parameter.ndim in (2, 4)
        stripe = '.vertical.' in name or '.horizontal.' in name
        return 1 - sparsity if sparse and not stripe else 1.0

    nonzeros = total(complexity(model, row.shape, density)).nonzeros / 1e6
    assert abs(nonzeros - row.parameters) < 0.6
