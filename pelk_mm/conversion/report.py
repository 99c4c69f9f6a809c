"""What a conversion did, for people and for programs."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mmengine.config import Config
from rich.console import Console
from rich.progress import track

from .convert import Report
from .files import write_output

Item = TypeVar('Item')

#: Names of a list that are shown; a JSON report has them all.
SHOWN = 4


def show_progress(
    items: Iterable[Item], description: str, total: int
) -> Iterable[Item]:
    """Pass items on behind a progress bar on a terminal's standard error."""
    console = Console(stderr=True)
    return track(
        items,
        description,
        total=total,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def fitting_configs(report: Report, folder: Path) -> list[str]:
    """Configs of a folder whose model has a backbone that the result fits.

    Args:
        report: The conversion; of a whole model only configs with its heads fit.
        folder: Folder of configs named ``{head}_{backbone}_{size}_{data}.py``.
    """
    heads = {name.split('.')[0] for name in report.converted} if report.whole else set()
    heads -= {'backbone'}
    fitting = []
    backbone = report.backbone['type'].lower()
    for path in sorted(folder.glob(f'*_{backbone}_*.py')):
        model = Config.fromfile(path, import_custom_modules=False).model
        if _sizes(model.backbone) == _sizes(report.backbone) and heads <= set(model):
            fitting.append(str(Path(folder.name) / path.name))
    return fitting


def _sizes(backbone: Mapping[str, Any]) -> str:
    """What of a backbone's config its weights depend on."""
    keys = (
        'type',
        'arch',
        'in_channels',
        'small_kernel_merged',
        'norm_intermediate_features',
    )
    return json.dumps({key: backbone.get(key) for key in keys})


def describe(report: Report, configs: list[str]) -> str:
    """The report as text, one fact a line."""
    cfg = report.backbone
    arch = cfg['arch'] if isinstance(cfg['arch'], str) else 'of no named size'
    under = f' under {report.key!r}' if report.key else ''
    lines = [
        f'{report.source}: {report.family}{under}, sha256 {report.sha256[:16]}',
        f'{cfg["type"]} {arch}: {len(report.converted)} tensors converted'
        + ', heads included' * report.whole,
        *_reasons('dropped', report.dropped),
        *_reasons('left at their initial values', report.initial),
        *_names('missing', report.missing),
        *_names('unknown', report.unknown),
        *(
            f'  shape mismatch: {name} is {tuple(found)}, {cfg["type"]} {arch} has '
            f'{tuple(expected)}'
            for name, (found, expected) in report.mismatched.items()
        ),
    ]
    if report.densities:
        lines.append(f'  density {report.density:.3f} over 2-D and 4-D weights:')
        lines += [f'    {share:.3f} {name}' for name, share in report.densities.items()]
    lines += [
        f'  stage {stage}: kernels projected with a relative error of {error:.3f}'
        for stage, error in enumerate(report.projection_errors)
    ]
    lines.append(f'  fits backbone={cfg}')
    lines += [f'  fits {config}' for config in configs]
    if report.written:
        lines.append(f'{report.written} written and verified')
    return '\n'.join(lines)


def _reasons(what: str, reasons: dict[str, str]) -> list[str]:
    """A line for each reason with the names that it holds for."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return [
        line
        for reason, names in groups.items()
        for line in _names(f'{what} ({reason})', names)
    ]


def _names(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f', ... ({len(names)} in all)' * (len(names) > SHOWN)
    return [f'  {what}: {", ".join(names[:SHOWN])}{more}']


def write_json(
    path: Path, report: Report | None, configs: list[str], error: str | None
) -> None:
    """Write everything that `describe` prints, and all that it shortens.

    Args:
        path: The file, replaced if it exists.
        report: The conversion, None if the source was refused.
        configs: Configs that fit.
        error: What was wrong, None if nothing was.

    Raises:
        CheckpointError: If it cannot be written.
    """
    content: dict[str, Any] = {'error': error, 'complete': False}
    if report is not None:
        content |= report.as_dict() | {'configs': configs}
    with write_output(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + '\n')
