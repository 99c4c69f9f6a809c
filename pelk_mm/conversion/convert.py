"""Convert a released checkpoint to this package's names, or the other way."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pelk_mm.checkpoints.files import (
    CheckpointError,
    Track,
    check_destination,
    file_sha256,
    read_checkpoint,
    untracked,
    write_checkpoint,
)
from pelk_mm.checkpoints.rules import (
    BACKBONE_TYPES,
    detect_family,
    families,
    from_released,
    rename,
    to_released,
)
from pelk_mm.checkpoints.weights import check_tensors, select_weights
from pelk_mm.version import __version__

from .infer import infer_backbone
from .records import (
    Fate,
    Record,
    assemble,
    compare_with_backbone,
    in_progress,
    rename_backbone,
    replace_by_pelk,
    split_parts,
    summarise,
    tensors_by_name,
    with_fate,
)
from .report import Report, shorten
from .warm_start import start_pelk


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
        arch: Family, or ``auto`` to infer it from the names.
        ema: Whether to take the averaged weights, ``model_ema``.
        prefix: Prefix of the backbone's names in the result; None for ``backbone.`` if
            the checkpoint contains heads and for none otherwise. Heads are dropped
            with any other prefix than ``backbone.``.
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
        CheckpointError: If the source cannot be converted or the destination cannot be
            written.
    """
    source, destination = Path(source), Path(destination)
    if not dry_run:
        check_destination(destination, force)
    if official and warm_start:
        raise CheckpointError('there are no released PeLK names to start PeLK under')
    content = read_checkpoint(source)
    try:
        found = select_weights(content, ema)
        check_tensors(found.tensors, track)
        records, report = _convert(found.tensors, arch, prefix, official, warm_start)
    except CheckpointError as error:
        # The parts know no file names; what they say continues this sentence.
        raise CheckpointError(f'{source} cannot be converted: {error}') from error
    writes = not dry_run and (report.complete or not strict)
    report = replace(
        report,
        source=str(source),
        sha256=file_sha256(source, track),
        key=found.key,
        dropped=found.dropped | report.dropped,
        written=str(destination) if writes else None,
    )
    if writes:
        # The released files have the weights of whole models under state_dict.
        key = 'model' if official and not report.whole else 'state_dict'
        meta = None if official else _meta(found.meta, report)
        write_checkpoint(destination, tensors_by_name(records), meta, key, track)
    return report


def _convert(
    tensors: dict[str, Tensor],
    arch: str,
    prefix: str | None,
    official: bool,
    warm_start: str | None,
) -> tuple[list[Record], Report]:
    """Convert tensors by full name; the report lacks what is known of their file."""
    records = split_parts(tensors)
    names = [record.name for record in in_progress(records)]
    released = detect_family(names)
    family = released or detect_family(names, ours=True)
    if family is None:
        raise CheckpointError(
            f'its names, {shorten(names)}, are not those of PeLK, SLaK or RepLKNet'
        )
    if arch not in ('auto', family):
        raise CheckpointError(f'its names are those of a {family} model, not of {arch}')
    if official and released:
        raise CheckpointError('its names are the released ones already')
    if official and family not in families():
        raise CheckpointError(f'there are no released {BACKBONE_TYPES[family]} models')
    if released:
        rename_backbone(records, family, from_released)
    backbone = infer_backbone({r.name: r.shape for r in in_progress(records)}, family)
    compare_with_backbone(records, backbone)
    if released:  # what the source lacks is reported by its name there
        for record in with_fate(records, Fate.MISSING):
            record.name = rename(record.name, family, to_released=True) or record.name
    weights = tensors_by_name(in_progress(records))
    density, densities = _measure_density(weights)
    errors: list[float] = []
    if warm_start:
        so_far = Report('', backbone=backbone, **summarise(records))
        problems = so_far.summarise_problems()
        if problems:
            raise CheckpointError(
                f'PeLK starts from complete weights only, and {problems}'
            )
        pelk_arch = warm_start.removeprefix('pelk').lstrip('-')
        start = start_pelk(weights, backbone, pelk_arch)
        backbone, errors = start.backbone, start.errors
        records = replace_by_pelk(records, start)
    if official:
        rename_backbone(records, family, to_released)
    records = assemble(records, prefix)
    return records, Report(
        source='',
        family=family,
        backbone=backbone,
        **summarise(records),
        densities=densities,
        density=density,
        projection_errors=errors,
    )


def _measure_density(tensors: dict[str, Tensor]) -> tuple[float, dict[str, float]]:
    """Share of non-zeros over all 2-D and 4-D weights, and of each if any is sparse."""
    weights = {name: t for name, t in tensors.items() if t.ndim in (2, 4)}
    nonzeros = {name: int(t.count_nonzero()) for name, t in weights.items()}
    size = sum(weight.numel() for weight in weights.values())
    density = sum(nonzeros.values()) / max(size, 1)
    if density >= 0.999:
        return density, {}
    return density, {name: nonzeros[name] / t.numel() for name, t in weights.items()}


def _meta(meta: dict[str, Any], report: Report) -> dict[str, Any]:
    """Notes for the result: where it comes from, and the classes of the source."""
    file = Path(report.source).name
    notes: dict[str, Any] = dict(
        source=dict(file=file, sha256=report.sha256, key=report.key),
        pelk_mm_version=__version__,
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
