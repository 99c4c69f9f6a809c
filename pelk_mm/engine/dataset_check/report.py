"""Print what a check of a data set found, and write it as JSON."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from .check import SplitReport
from .findings import KINDS, Finding

#: Findings of a kind that are printed.
SHOWN = 10


def count_levels(reports: Sequence[SplitReport]) -> tuple[int, int]:
    """Numbers of errors and of warnings."""
    levels = [found.level for report in reports for found in report.findings]
    return levels.count('error'), levels.count('warning')


def format_reports(reports: Sequence[SplitReport], shown: int = SHOWN) -> str:
    """The reports in Markdown.

    Args:
        reports: The reports.
        shown: How many findings of a kind are listed; the others are counted.
    """
    lines: list[str] = []
    for report in reports:
        lines += [*_format_split(report, shown), '']
    errors, warnings = count_levels(reports)
    lines.append(f'{_count(errors, "error")}, {_count(warnings, "warning")}')
    return '\n'.join(lines)


def as_json(reports: Sequence[SplitReport]) -> dict[str, Any]:
    """All that was found, for ``json.dump``."""
    errors, warnings = count_levels(reports)
    return dict(
        errors=errors,
        warnings=warnings,
        splits={
            report.name: dict(
                same_as=report.same_as,
                data_sets=report.kinds,
                images=report.images,
                sizes=report.sizes,
                unit=report.unit,
                counts=dict(report.counts),
                images_with=dict(report.images_with),
                ignored=report.ignored,
                findings=[
                    dict(
                        level=found.level,
                        kind=found.kind,
                        where=found.where,
                        detail=found.detail,
                    )
                    for found in report.findings
                ],
            )
            for report in reports
        },
    )


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}{"s" * (number != 1)}'


def _format_split(report: SplitReport, shown: int) -> Iterator[str]:
    if report.same_as:
        yield f'## {report.name}: the data set of {report.same_as}'
        yield from _format_findings(report.findings, shown)
        return
    kinds = ', '.join(dict.fromkeys(report.kinds))
    yield f'## {report.name}: {_count(report.images, "image")}, {kinds}'
    if report.sizes:
        (width, height), (most_width, most_height) = report.sizes
        if report.sizes[0] == report.sizes[1]:
            yield f'\nSize: {width} x {height} (W x H)'
        else:
            yield f'\nWidth: {width} to {most_width}, height: {height} to {most_height}'
    if report.counts:
        yield ''
        yield from _format_counts(report)
    yield from _format_findings(report.findings, shown)


def _format_counts(report: SplitReport) -> Iterator[str]:
    total = sum(report.counts.values())
    width = max(map(len, [*report.counts, 'class']))
    places = max(len(report.unit), len(str(total)), 7)
    yield f'| {"class":<{width}} | {report.unit:>{places}} |  share | images |'
    yield f'|{"-" * (width + 2)}|{"-" * (places + 1)}:|{"-" * 7}:|{"-" * 7}:|'
    for name, count in report.counts.items():
        share = f'{count / total:.2%}' if total else ''
        images = report.images_with[name]
        yield f'| {name:<{width}} | {count:>{places}} | {share:>6} | {images:>6} |'
    if report.ignored:
        ignored = 'ignored'
        yield f'| {ignored:<{width}} | {report.ignored:>{places}} | {"":>6} | {"":>6} |'


def _format_findings(findings: Sequence[Finding], shown: int) -> Iterator[str]:
    """Findings by kind, errors first."""
    order = list(KINDS)

    def rank(found: Finding) -> tuple[str, int]:
        return found.level, order.index(found.kind)

    for (level, number), group in groupby(sorted(findings, key=rank), key=rank):
        kind, found = KINDS[order[number]], list(group)
        times = f' ({len(found)} times)' if len(found) > 1 else ''
        yield f'\n**{level}**: {kind.title}{times}'
        yield from (f'- {each}' for each in found[:shown])
        if len(found) > shown:
            yield f'- and {len(found) - shown} more; --json FILE has all'
        yield f'\n  Remedy: {kind.remedy}.'
