"""A released checkpoint becomes this package's, or the way back."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import pelk_mm

from .arch import BACKBONES, build_backbone, infer_backbone
from .files import (
    WRAPPERS,
    CheckpointError,
    Track,
    check_destination,
    file_sha256,
    find_weights,
    read_checkpoint,
    untracked,
    write_checkpoint,
)
from .rules import (
    detect_family,
    families,
    from_released,
    rename,
    rename_head,
    to_released,
)
from .warm_start import start_pelk

BACKBONE = 'backbone.'

#: Types of number that weights are kept in.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: Why entries beside the weights stay behind.
_TRAINING = 'what a training run keeps beside the weights'
_OTHER_WEIGHTS = 'the other weights; --ema chooses between the two'

#: A norm behind an output, which classification models do not have.
_OUTPUT_NORMS = tuple(f'norm{stage}.' for stage in range(10))


class Source(NamedTuple):
    """The weights of a checkpoint file.

    Attributes:
        key: What they stood under; None where the file is a bare state dict.
        tensors: The weights by full name.
        meta: The checkpoint's own notes.
        dropped: Other entries of the file and why they are not used.
    """

    key: str | None
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    dropped: dict[str, str]


@dataclass
class Report:
    """What a conversion did.

    Attributes:
        source: Path of the file read.
        sha256: Hash of its bytes.
        key: What its weights stood under; None where it is a bare state dict.
        family: ``pelk``, ``slak`` or ``replknet``.
        backbone: Config of the backbone whose weights the result is.
        whole: Whether heads came along.
        converted: Source name of each of the result's tensors, '' for what was made of
            none and a list in words for what was made of several.
        dropped: Reason by name of what has no place in the result.
        initial: Reason by name of what the result leaves at its initial values.
        missing: Names that the backbone has and the source has not.
        unknown: Source names that neither rules nor backbone know.
        mismatched: Found and expected shape of tensors that do not fit.
        densities: Share of non-zeros of each 2-D and 4-D weight, if any is sparse.
        density: The same over all of them.
        projection_errors: Relative error of a warm start's kernels, one a stage.
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
        """What keeps the conversion from being complete, in a phrase."""
        problems = []
        if self.missing:
            problems.append(f'it lacks {_shorten(self.missing)}')
        if self.unknown:
            problems.append(f'nothing has a place for {_shorten(self.unknown)}')
        for name, (found, expected) in list(self.mismatched.items())[:1]:
            problems.append(
                f'{name} is {tuple(found)} where a {self.backbone["type"]} of its size '
                f'has {tuple(expected)}'
            )
        return ', '.join(problems)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {'complete': self.complete, **asdict(self)}


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    arch: str = 'auto',
    ema: bool = False,
    prefix: str | None = None,
    strict: bool = True,
    official: bool = False,
    warm_start: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    track: Track = untracked,
) -> Report:
    """Convert a checkpoint file.

    Args:
        source: A released checkpoint, or one in this package's names.
        destination: The file to write; safetensors if it ends in ``.safetensors``.
        arch: Family, or ``auto`` to tell it by the names.
        ema: Whether to take the averaged weights, ``model_ema``.
        prefix: What the backbone's names shall start with; None for ``backbone.``
            where heads come along and nothing otherwise. With any other prefix than
            ``backbone.`` heads stay behind.
        strict: Whether to write nothing unless the conversion is complete.
        official: Whether to go back to the released names instead.
        warm_start: ``pelk`` or ``pelk-`` and the name of an ``arch`` of PeLK, to
            start it from the source's weights; None to keep the model.
        force: Whether to replace an existing file.
        dry_run: Whether to write nothing at all.
        track: Shows progress.

    Returns:
        The report. ``written`` is None after a dry run and where ``strict`` forbade
        an incomplete result.

    Raises:
        CheckpointError: If the source cannot be converted or the destination not be
            written.
    """
    source, destination = Path(source), Path(destination)
    if not dry_run:
        check_destination(destination, force)
    if official and warm_start:
        raise CheckpointError('there are no released PeLK names to start PeLK under')
    report = Report(str(source))
    content = read_checkpoint(source)
    try:
        found = select_weights(content, ema)
        report.key, report.dropped = found.key, found.dropped
        check_tensors(found.tensors, track)
        result = _convert(found.tensors, report, arch, prefix, official, warm_start)
    except CheckpointError as error:
        # The parts know no file names; what they say continues this sentence.
        raise CheckpointError(f'{source} cannot be converted: {error}') from error
    report.sha256 = file_sha256(source, track)
    if dry_run or (strict and not report.complete):
        return report
    if official:
        # The released files have the weights of whole models under state_dict.
        key, meta = 'state_dict' if report.whole else 'model', None
    else:
        key, meta = 'state_dict', _meta(found.meta, report)
    write_checkpoint(destination, result, meta, key, track)
    report.written = str(destination)
    return report


def select_weights(content: Any, ema: bool = False) -> Source:
    """Find the weights in a loaded checkpoint file.

    Args:
        content: What the file held.
        ema: Whether to take the averaged weights.

    Raises:
        CheckpointError: If there are none, or something else among them.
    """
    key, tensors = find_weights(content, ('model_ema',) if ema else WRAPPERS)
    if ema and key is None:
        raise CheckpointError('it has no model_ema; leave out --ema')
    if key == 'model_ema' and not ema:
        raise CheckpointError('it has averaged weights alone; give --ema to take them')
    if not tensors:
        raise CheckpointError(f'its {key or "state dict"} is empty')
    for name, value in tensors.items():
        # A name is printed; one with control characters could steer the terminal.
        if not isinstance(name, str) or not name.isprintable():
            raise CheckpointError(f'it has a tensor under {name!r}, which is no name')
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f'its {key or "top level"} holds {name!r} of type '
                f'{type(value).__name__} where weights have tensors by name'
            )
    meta = content.get('meta')
    dropped = {}
    for name in (str(name) for name in content if key is not None):
        if name not in (key, 'meta'):
            shown = name if name.isprintable() else ascii(name)
            dropped[shown] = _OTHER_WEIGHTS if name in WRAPPERS else _TRAINING
    return Source(key, dict(tensors), meta if isinstance(meta, dict) else {}, dropped)


def check_tensors(tensors: Mapping[str, Tensor], track: Track = untracked) -> None:
    """Check that tensors are ordinary, in memory, and finite.

    Raises:
        CheckpointError: If one is not.
    """
    infinite = []
    for name, tensor in track(tensors.items(), 'checking', len(tensors)):
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise CheckpointError(f'{name} is a sparse or quantized tensor')
        if tensor.device.type != 'cpu':
            raise CheckpointError(f'{name} is a tensor without values')
        # A few bytes can pretend to be any number of values, all the same.
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(f'{name} repeats one value instead of holding all')
        if name.endswith('num_batches_tracked'):
            continue
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f'{name} is of {tensor.dtype}; weights are floating-point numbers'
            )
        # The extremes pass NaN on, without a temporary of the tensor's size.
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            infinite.append(name)
    if infinite:
        raise CheckpointError(
            f'{len(infinite)} of its tensors hold NaN or infinity (first: '
            f'{infinite[0]}), as after a training that diverged; use an earlier one'
        )


def _convert(
    tensors: dict[str, Tensor],
    report: Report,
    arch: str,
    prefix: str | None,
    official: bool,
    warm_start: str | None,
) -> dict[str, Tensor]:
    """The tensors under their new full names; the report is filled in."""
    body, heads = _split(tensors, report)
    report.whole = bool(heads)
    released = detect_family(body)
    family = released or detect_family(body, ours=True)
    if family is None:
        raise CheckpointError(
            f'its names, {_shorten(body)}, are those of no '
            f'{", ".join(BACKBONES.values())}'
        )
    if arch not in ('auto', family):
        raise CheckpointError(f'its names are those of a {family} model, not of {arch}')
    report.family = family
    if official and released:
        raise CheckpointError('its names are the released ones already')
    if released:
        conversion = from_released(body, family)
        for name, reason in conversion.dropped.items():
            report.dropped[body[name]] = reason
        report.unknown += [body[name] for name in conversion.unknown]
        body = conversion.converted
    weights = {name: tensors[origin] for name, origin in body.items()}
    report.backbone = infer_backbone(
        {name: tuple(tensor.shape) for name, tensor in weights.items()}, family
    )
    weights = _fit(weights, body, report)
    if released:
        report.missing = [
            rename(name, family, to_released=True) or name for name in report.missing
        ]
    _measure_density(weights, report)
    if warm_start:
        if not report.complete:
            raise CheckpointError(
                'PeLK starts from complete weights alone, and '
                f'{report.summarise_problems()}'
            )
        weights = _warm_start(weights, body, report, warm_start)
    if official:
        if family not in families():
            raise CheckpointError(f'there are no released {BACKBONES[family]} models')
        names = to_released({name: name for name in weights}, family)
        report.unknown += [body[name] for name in names.unknown]
        weights = {new: weights[old] for new, old in names.converted.items()}
        body = {new: body[old] for new, old in names.converted.items()}
    return _assemble(weights, body, heads, tensors, prefix, report)


def _split(
    tensors: dict[str, Tensor], report: Report
) -> tuple[dict[str, str], dict[str, str]]:
    """Full name of each tensor of backbone and heads by its bare, or new, name."""
    bare = {name: name for name in tensors}
    while all(name.startswith('module.') for name in bare):
        bare = {name.removeprefix('module.'): full for name, full in bare.items()}
    if not any(name.startswith(BACKBONE) for name in bare):
        return bare, {}
    body: dict[str, str] = {}
    heads: dict[str, str] = {}
    for name, full in bare.items():
        head = rename_head(name)
        if name.startswith(BACKBONE):
            body[name.removeprefix(BACKBONE)] = full
        elif head is None or head in heads:
            report.unknown.append(full)
        else:
            heads[head] = full
    if any(name.startswith('rpn_head.') for name in bare) and any(
        name.startswith(('bbox_head.', 'mask_head.')) for name in bare
    ):
        raise CheckpointError(
            'its heads are those of mmdet 1.x, which numbered the classes otherwise; '
            "upgrade it with mmdet's tools/model_converters/upgrade_model_version.py"
        )
    return body, heads


def _fit(
    weights: dict[str, Tensor], body: dict[str, str], report: Report
) -> dict[str, Tensor]:
    """The weights that the backbone has; the report says what is wrong with others."""
    expected = build_backbone(report.backbone).state_dict()
    fitting = {}
    for name, tensor in weights.items():
        if name not in expected:
            report.unknown.append(body[name])
        elif tensor.shape != expected[name].shape:
            report.mismatched[body[name]] = (
                list(tensor.shape),
                list(expected[name].shape),
            )
        else:
            fitting[name] = tensor
    absent = [name for name in expected if name not in weights]
    norms = [name for name in expected if name.startswith(_OUTPUT_NORMS)]
    # Heads were trained on the norms' outputs: without them the source is damaged.
    classifier = not report.whole and all(name in absent for name in norms)
    for name in absent:
        if classifier and name in norms:
            report.initial[name] = 'an output norm, which a classifier does not have'
        elif name.endswith('num_batches_tracked'):
            report.initial[name] = 'a counter that checkpoints before PyTorch 0.4 lack'
        else:
            report.missing.append(name)
    return fitting


def _measure_density(weights: dict[str, Tensor], report: Report) -> None:
    counts = {
        name: (int(tensor.count_nonzero()), tensor.numel())
        for name, tensor in weights.items()
        if tensor.ndim in (2, 4)
    }
    total = sum(size for _, size in counts.values())
    report.density = sum(active for active, _ in counts.values()) / max(total, 1)
    if report.density < 0.999:
        report.densities = {
            name: active / size for name, (active, size) in counts.items()
        }


def _warm_start(
    weights: dict[str, Tensor], body: dict[str, str], report: Report, target: str
) -> dict[str, Tensor]:
    """PeLK's weights in place of the source's."""
    start = start_pelk(
        weights, report.backbone, target.removeprefix('pelk').lstrip('-')
    )
    report.backbone = start.backbone
    report.projection_errors = start.errors
    report.initial = dict.fromkeys(start.initial, 'nothing in the source corresponds')
    used = {origin for origins in start.origins.values() for origin in origins}
    for name in (name for name in weights if name not in used):
        report.dropped[body[name]] = 'PeLK has nothing that corresponds'
    sources = dict(body)
    for name, origins in start.origins.items():
        body[name] = ', '.join(sources[origin] for origin in origins)
    return start.tensors


def _assemble(
    weights: dict[str, Tensor],
    body: dict[str, str],
    heads: dict[str, str],
    tensors: dict[str, Tensor],
    prefix: str | None,
    report: Report,
) -> dict[str, Tensor]:
    """Backbone and heads under their full new names, in the source's order."""
    if prefix is None:
        prefix = BACKBONE if heads else ''
    if prefix != BACKBONE:
        for full in heads.values():
            report.dropped[full] = f'a head, which has no place beside {prefix!r} names'
        heads = {}
    report.whole = bool(heads)
    full_names = {prefix + name: (body[name], value) for name, value in weights.items()}
    full_names |= {name: (full, tensors[full]) for name, full in heads.items()}
    report.converted = {name: origin for name, (origin, _) in full_names.items()}
    return {name: value for name, (_, value) in full_names.items()}


def _shorten(names: Iterable[str], shown: int = 3) -> str:
    names = list(names)
    return ', '.join(names[:shown]) + f', ... ({len(names)})' * (len(names) > shown)


def _meta(meta: dict[str, Any], report: Report) -> dict[str, Any]:
    """Notes for the result: where it comes from, and the classes of the source."""
    notes = dict(
        source=dict(
            file=Path(report.source).name, sha256=report.sha256, key=report.key
        ),
        pelk_mm_version=pelk_mm.__version__,
        backbone=report.backbone,
    )
    if isinstance(meta.get('dataset_meta'), dict):
        notes['dataset_meta'] = meta['dataset_meta']
    elif isinstance(meta.get('CLASSES'), (list, tuple)):
        # mmseg 0.x and mmdet 2.x had these under other names.
        notes['dataset_meta'] = dict(classes=list(map(str, meta['CLASSES'])))
        if isinstance(meta.get('PALETTE'), (list, tuple)):
            notes['dataset_meta']['palette'] = [
                [int(value) for value in colour] for colour in meta['PALETTE']
            ]
    return notes
