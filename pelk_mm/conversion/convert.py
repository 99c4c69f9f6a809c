"""Convert a released checkpoint to this package's names, or the other way."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pelk_mm.checkpoints.download import download, is_url
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
    is_plain_prefix,
    rename,
    to_released,
)
from pelk_mm.checkpoints.weights import Source, check_tensors, select_weights

from .infer import classifier_outputs, infer_backbone
from .notes import adjust_backbone, make_meta
from .outer_taps import CHOICES as OUTER_TAPS
from .outer_taps import trim_kernels
from .records import (
    BACKBONE,
    Fate,
    Record,
    assemble,
    choose_prefix,
    compare_with_backbone,
    drop_classifier_norm,
    drop_heads,
    has_heads,
    in_progress,
    is_classifier,
    keep_classifier,
    rename_backbone,
    rename_heads,
    replace_by_pelk,
    replace_tensors,
    split_parts,
    summarise,
    tensors_by_name,
    with_fate,
)
from .report import Report, shorten
from .stem import adapt_records
from .warm_start import start_pelk


@dataclass(frozen=True)
class Options:
    """How to convert.

    Attributes:
        arch: Family, or ``auto`` to infer it from the names.
        ema: Whether to take averaged weights, or those without averaging; None for the
            authors' without (``model``) and mmengine's with (``state_dict``).
        from_prefix: What the names of the backbone start with in the source, or how
            that begins; None to take the only backbone.
        prefix: Prefix of the backbone's names in the result; None for ``backbone.`` if
            the checkpoint contains heads and for none otherwise. Heads are dropped
            with any other prefix than ``backbone.``.
        in_channels: Channels of the images, see `adapt_stem`; None for the source's.
        official: Whether to go back to the released names instead.
        classifier: Whether to keep a released classifier's norm and linear layer, as a
            whole model of mmpretrain.
        outer_taps: What becomes of taps that the training never used: ``keep``,
            ``zero`` or ``crop``, see `trim_kernels`.
        trained_at: Height and width of the images of that training.
        warm_start: ``pelk`` or ``pelk-`` and the name of an ``arch`` of PeLK, to
            start it from the source's weights; None to keep the model.
    """

    arch: str = 'auto'
    ema: bool | None = None
    from_prefix: str | None = None
    prefix: str | None = None
    in_channels: int | None = None
    official: bool = False
    classifier: bool = False
    outer_taps: str = 'keep'
    trained_at: int = 224
    warm_start: str | None = None


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    strict: bool = True,
    force: bool = False,
    dry_run: bool = False,
    track: Track = untracked,
    **options: Any,
) -> Report:
    """Convert a checkpoint file.

    Args:
        source: A released checkpoint, or one in this package's names; its path, or an
            ``http(s)://`` address, which is downloaded once.
        destination: The file to write; safetensors if it ends in ``.safetensors``.
        strict: Whether to write nothing unless the conversion is complete.
        force: Whether to replace an existing file.
        dry_run: Whether to write nothing at all.
        track: Shows progress.
        options: See `Options`.

    Returns:
        The report. ``written`` is None after a dry run and where ``strict`` forbade
        an incomplete result.

    Raises:
        CheckpointError: If the source cannot be converted or the destination cannot be
            written.
    """
    how = Options(**options)
    destination = Path(destination)
    if not dry_run:
        check_destination(destination, force)
    if how.official and how.warm_start:
        raise CheckpointError('there are no released PeLK names to start PeLK under')
    if how.in_channels is not None and how.in_channels < 1:
        raise CheckpointError(f'in_channels {how.in_channels} is not a positive number')
    if how.outer_taps not in OUTER_TAPS:
        raise CheckpointError(
            f'outer_taps {how.outer_taps!r} is not one of {", ".join(OUTER_TAPS)}'
        )
    if how.classifier and how.prefix not in (None, BACKBONE):
        raise CheckpointError(
            f'a classifier is kept with the prefix {BACKBONE!r}, not {how.prefix!r}'
        )
    path, content = _read(source)
    try:
        found = select_weights(content, how.ema)
        check_tensors(found.tensors, track)
        records, report = _convert(found, how)
    except CheckpointError as error:
        # The parts know no file names; what they say continues this sentence.
        raise CheckpointError(f'{source} cannot be converted: {error}') from error
    cfg = _fitting_cfg(found.meta.get('cfg'), records, report, how)
    lost = {} if cfg is not None or 'cfg' not in found.meta else {'meta.cfg': _NO_CFG}
    writes = not dry_run and (report.complete or not strict)
    report = replace(
        report,
        source=str(path),
        sha256=file_sha256(path, track),
        key=found.key,
        dropped=found.dropped | lost | report.dropped,
        written=str(destination) if writes else None,
    )
    if writes:
        # The released files have the weights of whole models under state_dict.
        key = 'model' if how.official and not report.whole else 'state_dict'
        meta = None if how.official else make_meta(found.meta, report, cfg)
        write_checkpoint(destination, tensors_by_name(records), meta, key, track)
    return report


#: Why the config of a source is dropped.
_NO_CFG = "the config of the source's model, which the result does not fit"


def _read(source: str | Path) -> tuple[Path, Any]:
    """Path of the source and its content.

    Raises:
        CheckpointError: If it cannot be read or downloaded.
    """
    if not is_url(str(source)):
        return Path(source), read_checkpoint(source)
    path = download(str(source))
    try:
        return path, read_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(
            f'{error}. It is what {source} gave; to download that again, delete {path}'
        ) from error


def _convert(found: Source, how: Options) -> tuple[list[Record], Report]:
    """Convert tensors by full name; the report lacks what is known of their file."""
    from_prefix = choose_prefix(found.tensors, how.from_prefix)
    records = split_parts(found.tensors, from_prefix)
    names = [record.name for record in in_progress(records)]
    released = detect_family(names)
    family = released or detect_family(names, ours=True)
    if family is None:
        raise CheckpointError(
            f'its names, {shorten(names)}, are not those of PeLK, SLaK or RepLKNet'
        )
    if how.arch not in ('auto', family):
        raise CheckpointError(
            f'its names are those of a {family} model, not of {how.arch}'
        )
    if how.official and released:
        raise CheckpointError('its names are the released ones already')
    if how.official and family not in families():
        raise CheckpointError(f'there are no released {BACKBONE_TYPES[family]} models')
    if released and how.classifier:
        keep_classifier(records, family)
    elif released:
        rename_heads(records, current='mmengine_version' in found.meta)
    prefix = drop_heads(records, how.prefix)
    if released:
        rename_backbone(records, family, from_released)
    drop_classifier_norm(records, released is not None)
    backbone = infer_backbone({r.name: r.shape for r in in_progress(records)}, family)
    if is_classifier(records) and 'norm_intermediate_features' not in backbone:
        backbone |= classifier_outputs(backbone)
    compare_with_backbone(records, backbone)
    if released:  # what the source lacks is reported by its name there
        for record in with_fate(records, Fate.MISSING):
            record.name = rename(record.name, family, to_released=True) or record.name
    notes = [] if is_plain_prefix(from_prefix) else [_told(from_prefix)]
    if how.in_channels is not None:
        notes += adapt_records(records, backbone, how.in_channels)
    if how.outer_taps != 'keep':
        trimmed = trim_kernels(
            tensors_by_name(in_progress(records)),
            backbone,
            how.trained_at,
            crop=how.outer_taps == 'crop',
        )
        backbone = trimmed.backbone
        notes += trimmed.notes or [_told_nothing(how.trained_at)]
        replace_tensors(records, trimmed.tensors)
    weights = tensors_by_name(in_progress(records))
    density, densities = _measure_density(weights)
    errors: list[float] = []
    if how.warm_start:
        so_far = Report('', backbone=backbone, **summarise(records))
        problems = so_far.summarise_problems()
        if problems:
            raise CheckpointError(
                f'PeLK starts from complete weights only, and {problems}'
            )
        pelk_arch = how.warm_start.removeprefix('pelk').lstrip('-')
        start = start_pelk(weights, backbone, pelk_arch)
        backbone, errors = start.backbone, start.errors
        records = replace_by_pelk(records, start)
    if how.official:
        rename_backbone(records, family, to_released)
    return assemble(records, prefix), Report(
        source='',
        prefix=from_prefix,
        released=bool(released),
        family=family,
        backbone=backbone,
        **summarise(records),
        notes=notes,
        densities=densities,
        density=density,
        projection_errors=errors,
    )


def _told(prefix: str) -> str:
    return f'the backbone is under {prefix} (--from-prefix {prefix})'


def _told_nothing(image: int) -> str:
    return f'images of {image} x {image} use all taps of its kernels'


def _fitting_cfg(
    text: Any, records: list[Record], report: Report, how: Options
) -> str | None:
    """Text of the source's config, adjusted to the result; None if it does not fit.

    Only a model of this package has a config that names a backbone of this package.
    """
    fits = report.whole or not has_heads(records)
    plain = is_plain_prefix(report.prefix) and not report.released
    if not isinstance(text, str) or not fits or not plain:
        return None
    if how.warm_start or how.outer_taps == 'crop':
        return adjust_backbone(text, report.backbone)
    if how.in_channels is not None:
        in_channels = report.backbone.get('in_channels', 3)
        return adjust_backbone(text, dict(in_channels=in_channels))
    return text


def _measure_density(tensors: dict[str, Tensor]) -> tuple[float, dict[str, float]]:
    """Share of non-zeros over all 2-D and 4-D weights, and of each if any is sparse."""
    weights = {name: t for name, t in tensors.items() if t.ndim in (2, 4)}
    nonzeros = {name: int(t.count_nonzero()) for name, t in weights.items()}
    size = sum(weight.numel() for weight in weights.values())
    density = sum(nonzeros.values()) / max(size, 1)
    if density >= 0.999:
        return density, {}
    return density, {name: nonzeros[name] / t.numel() for name, t in weights.items()}
