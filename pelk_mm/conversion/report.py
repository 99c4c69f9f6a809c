"""What a conversion did, for people and for programs."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.console import Console
from rich.progress import track

from pelk_mm.checkpoints.files import Item, write_output
from pelk_mm.checkpoints.misfit import shorten
from pelk_mm.config_types import type_name

#: Defaults of the arguments of backbones that weights depend on.
_DEFAULTS: dict[str, Any] = dict(
    in_channels=3,
    out_indices=(0, 1, 2, 3),
    layer_scale_init_value=1e-6,
    small_kernel_merged=False,
    norm_intermediate_features=False,
    output_norms=True,
)

#: How many names of a list are shown; a JSON report has all of them.
SHOWN = 4


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        source: Path of the file read.
        sha256: Hash of its bytes.
        prefix: What the names of the backbone started with there.
        released: Whether they were the released names.
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
        unknown_heads: Whether heads are among them.
        mismatched: Found and expected shape of tensors that do not fit.
        notes: What else was done, a sentence each.
        densities: Share of non-zeros of each 2-D and 4-D weight, if any is sparse.
        density: The same over all of them.
        projection_errors: Relative error of a warm start's kernels, one per stage.
        written: Path of the result; None if nothing was written.
    """

    source: str
    sha256: str = ''
    prefix: str = ''
    released: bool = False
    key: str | None = None
    family: str = ''
    backbone: dict[str, Any] = field(default_factory=dict)
    whole: bool = False
    converted: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    initial: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unknown_heads: bool = False
    mismatched: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    densities: dict[str, float] = field(default_factory=dict)
    density: float = 1.0
    projection_errors: list[float] = field(default_factory=list)
    written: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every tensor of the backbone has its value and none is left over."""
        return not (self.missing or self.unknown or self.mismatched)

    def summarise_problems(self) -> str:
        """What keeps it from being complete, in a phrase; '' if nothing does."""
        problems = []
        if self.missing:
            problems.append(f'it lacks {shorten(self.missing)}')
        if self.unknown:
            remedy = " (--prefix '' leaves the heads out)" * self.unknown_heads
            problems.append(f'nothing has a place for {shorten(self.unknown)}{remedy}')
        for name, (found, expected) in list(self.mismatched.items())[:1]:
            problems.append(
                f'{name} is {tuple(found)} where a {self.backbone["type"]} of its size '
                f'has {tuple(expected)}'
            )
        return ', '.join(problems)


def show_progress(
    items: Iterable[Item], description: str, total: int
) -> Iterable[Item]:
    """Pass items on and show their progress on standard error if it is a terminal."""
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return track(
        items, description, total, console=console, transient=True, disable=hidden
    )


def fitting_configs(report: Report, folder: Path) -> list[str]:
    """Configs of a folder whose model has a backbone that the result fits.

    Args:
        report: The conversion; of a whole model only configs with its heads fit.
        folder: Folder of configs named ``{head}_{backbone}_{size}_{data}.py``, those of
            classifiers ``pretrain/{backbone}_{size}_....py``.
    """
    heads = {name.split('.')[0] for name in report.converted} if report.whole else set()
    fitting = []
    family = report.backbone['type'].lower()
    paths = [*folder.glob(f'*_{family}_*.py'), *folder.glob(f'pretrain/{family}_*.py')]
    for path in sorted(paths):
        model = Config.fromfile(path, import_custom_modules=False).model
        if _sizes(model.backbone) == _sizes(report.backbone) and heads <= set(model):
            fitting.append(str(Path(folder.name) / path.relative_to(folder)))
    return fitting


def _sizes(backbone: Mapping[str, Any]) -> str:
    """The part of a config that weights depend on, a list written as a tuple is."""
    cfg = _DEFAULTS | dict(backbone)
    is_pelk = type_name(backbone['type']) == 'PeLK'
    has_norm = backbone.get('norm_cfg', not is_pelk) is not None
    cfg['layer_scale_init_value'] = bool(cfg['layer_scale_init_value'])
    cfg['type'] = type_name(cfg['type'])
    return json.dumps([has_norm, *(cfg[key] for key in ('type', 'arch', *_DEFAULTS))])


def describe(report: Report, configs: list[str]) -> str:
    """The report as text, one fact per line."""
    cfg = report.backbone
    arch = cfg['arch'] if isinstance(cfg['arch'], str) else 'of no named size'
    under = f' under {report.key!r}' if report.key else ''
    parts = dict.fromkeys(name.partition('.')[0] for name in report.converted)
    heads = [part for part in parts if part != 'backbone']
    lines = [
        f'{report.source}: {report.family}{under}, sha256 {report.sha256[:16]}',
        f'{cfg["type"]} {arch}: {len(report.converted)} tensors converted'
        + f', heads included ({", ".join(heads)})' * report.whole,
        *(f'  {note}' for note in report.notes),
    ]
    names: dict[str, list[str]] = defaultdict(list)
    for what, reasons in (
        ('dropped', report.dropped),
        ('left at their initial values', report.initial),
    ):
        for name, reason in reasons.items():
            names[f'{what} ({reason})'].append(name)
    names |= {'missing': report.missing, 'unknown': report.unknown}
    lines += [f'  {what}: {shorten(n, SHOWN)}' for what, n in names.items() if n]
    lines += [
        f'  shape mismatch: {name} is {tuple(found)}, {cfg["type"]} {arch} has '
        f'{tuple(expected)}'
        for name, (found, expected) in report.mismatched.items()
    ]
    if report.densities:
        lines.append(f'  density {report.density:.3f} over 2-D and 4-D weights:')
        lines += [f'    {share:.3f} {name}' for name, share in report.densities.items()]
    lines += [
        f'  stage {stage}: kernels projected with a relative error of {error:.3f}'
        for stage, error in enumerate(report.projection_errors)
    ]
    lines += [f'  fits {config}' for config in (f'backbone={cfg}', *configs)]
    if report.written:
        lines.append(f'{report.written} written and verified')
    return '\n'.join(lines)


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
        content |= asdict(report) | dict(complete=report.complete, configs=configs)
    with write_output(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + '\n')
