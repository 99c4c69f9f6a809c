"""What a conversion did, for people and for programs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mmengine.config import Config
from rich.console import Console
from rich.progress import track

from pelk_mm.checkpoints.files import write_output

Item = TypeVar('Item')

#: How many names of a list are shown; a JSON report has all of them.
SHOWN = 4


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        source: Path of the file read.
        sha256: Hash of its bytes.
        key: Entry of the file that held the weights; None for a bare state dict.
        family: ``pelk``, ``slak`` or ``replknet``.
        backbone: Config of the backbone whose weights the result is.
        whole: Whether the result contains heads.
        converted: Source name of each of the result's tensors, '' for what was made of
            none and a list in words for what was made of several.
        dropped: Reason by source name of what has no place in the result.
        initial: Reason by name of what the result leaves at its initial values.
        missing: Names that the backbone has and the source does not.
        unknown: Source names that neither rules nor backbone know.
        mismatched: Found and expected shape of tensors that do not fit.
        densities: Share of non-zeros of each 2-D and 4-D weight, if any is sparse.
        density: The same over all of them.
        projection_errors: Relative error of a warm start's kernels, one per stage.
        written: Path of the result; None if nothing was written.
    """

    source: str
    sha256: str = ''
    key: str | None = None
    family: str = ''
    backbone: dict[str, Any] = field(default_factory=dict)
    whole: bool = False
    converted: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    initial: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    densities: dict[str, float] = field(default_factory=dict)
    density: float = 1.0
    projection_errors: list[float] = field(default_factory=list)
    written: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every tensor of the backbone has its value and none is left over."""
        return not (self.missing or self.unknown or self.mismatched)

    def summarise_problems(self) -> str:
        """See the function of this name."""
        return summarise_problems(
            self.missing, self.unknown, self.mismatched, self.backbone['type']
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {'complete': self.complete, **asdict(self)}


def summarise_problems(
    missing: Sequence[str],
    unknown: Sequence[str],
    mismatched: Mapping[str, tuple[Sequence[int], Sequence[int]]],
    backbone_type: str,
) -> str:
    """What keeps a conversion from being complete, in a phrase; '' if nothing does.

    Args:
        missing: See `Report`, as for the others.
        unknown: See `Report`.
        mismatched: See `Report`.
        backbone_type: Type of the backbone.
    """
    problems = []
    if missing:
        problems.append(f'it lacks {shorten(missing)}')
    if unknown:
        problems.append(f'nothing has a place for {shorten(unknown)}')
    for name, (found, expected) in list(mismatched.items())[:1]:
        problems.append(
            f'{name} is {tuple(found)} where a {backbone_type} of its size has '
            f'{tuple(expected)}'
        )
    return ', '.join(problems)


def shorten(names: Sequence[str], shown: int = 3) -> str:
    """The first names of a list, and how many there are if that is not all."""
    return ', '.join(names[:shown]) + f', ... ({len(names)})' * (len(names) > shown)


def show_progress(
    items: Iterable[Item], description: str, total: int
) -> Iterable[Item]:
    """Pass items on and show their progress on standard error if it is a terminal."""
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
    """The part of a backbone's config that its weights depend on."""
    keys = (
        'type',
        'arch',
        'in_channels',
        'small_kernel_merged',
        'norm_intermediate_features',
    )
    return json.dumps({key: backbone.get(key) for key in keys})


def describe(report: Report, configs: list[str]) -> str:
    """The report as text, one fact per line."""
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
    """One line per reason with the names that it holds for."""
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
