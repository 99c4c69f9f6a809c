"""What becomes of every tensor of a checkpoint, step by step.

A conversion keeps one `Record` per tensor. Each step changes the records of the
backbone's tensors that are still in progress; those of heads and of tensors that have
no place in the result are settled.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from torch import Tensor

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.checkpoints.rules import (
    Renamed,
    backbone_prefixes,
    explain_dropped,
    model_prefix,
    rename_head,
)

from .infer import build_backbone
from .warm_start import WarmStart

BACKBONE = 'backbone.'

#: What the names of a classifier's linear layer in mmpretrain start with.
LINEAR_LAYER = 'head.fc.'

#: Norms of the outputs, which classification models do not have.
_OUTPUT_NORMS = tuple(f'norm{stage}.' for stage in range(10))


class Fate(Enum):
    """What becomes of a tensor."""

    CONVERTED = auto()
    #: It has no place in the result.
    DROPPED = auto()
    #: The result leaves it out, and a model keeps its initial value.
    INITIAL = auto()
    #: The backbone has it and the source does not.
    MISSING = auto()
    #: Neither rules nor backbone know it.
    UNKNOWN = auto()
    #: The backbone has it in another shape.
    MISMATCHED = auto()


@dataclass(eq=False)
class Record:
    """A tensor of the source or of the result.

    Attributes:
        name: Its name; every step of the conversion brings it nearer to the result's.
        source: Its full name in the source; '' if it was made of no tensor there and a
            list in words if it was made of several.
        tensor: Its value, None where the source does not have it.
        fate: What becomes of it.
        reason: Why it is dropped or left at its initial value.
        in_head: Whether it belongs to a head or a neck.
        expected: The backbone's shape, if that of the tensor is another.
    """

    name: str
    source: str = ''
    tensor: Tensor | None = None
    fate: Fate = Fate.CONVERTED
    reason: str = ''
    in_head: bool = False
    expected: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return () if self.tensor is None else tuple(self.tensor.shape)

    def settle(self, fate: Fate, reason: str = '') -> None:
        """Say what becomes of it, and why."""
        self.fate, self.reason = fate, reason


def with_fate(records: Iterable[Record], fate: Fate) -> list[Record]:
    """Records of one fate."""
    return [record for record in records if record.fate is fate]


def in_progress(records: Iterable[Record]) -> list[Record]:
    """Records of the backbone's tensors that are still converted."""
    return [r for r in with_fate(records, Fate.CONVERTED) if not r.in_head]


def tensors_by_name(records: Iterable[Record]) -> dict[str, Tensor]:
    """Tensors to be converted by name."""
    converted = with_fate(records, Fate.CONVERTED)
    return {r.name: r.tensor for r in converted if r.tensor is not None}


def summarise(records: list[Record]) -> dict[str, Any]:
    """What became of the tensors, by the attributes of `Report`."""
    converted = with_fate(records, Fate.CONVERTED)
    return dict(
        whole=any(record.in_head for record in converted),
        converted={r.name: r.source for r in converted},
        dropped={r.source: r.reason for r in with_fate(records, Fate.DROPPED)},
        initial={r.name: r.reason for r in with_fate(records, Fate.INITIAL)},
        missing=[r.name for r in with_fate(records, Fate.MISSING)],
        unknown=[r.source for r in with_fate(records, Fate.UNKNOWN)],
        unknown_heads=any(r.in_head for r in with_fate(records, Fate.UNKNOWN)),
        mismatched={
            r.source: (list(r.shape), list(r.expected))
            for r in with_fate(records, Fate.MISMATCHED)
        },
    )


def split_parts(tensors: dict[str, Tensor], prefix: str) -> list[Record]:
    """Records of the backbone and of the model around it, without their prefixes.

    Args:
        tensors: Tensors of a backbone or of a whole model by full name.
        prefix: What the backbone's names start with, see `choose_prefix`.
    """
    model = model_prefix(prefix)
    records = []
    for name, tensor in tensors.items():
        record = Record(name, name, tensor)
        if name.startswith(prefix):
            record.name = name.removeprefix(prefix)
        elif model is not None and name.startswith(model):
            record.name, record.in_head = name.removeprefix(model), True
        else:
            start = prefix if model is None else model
            record.settle(Fate.DROPPED, f'its name does not start with {start}')
        records.append(record)
    return records


def choose_prefix(names: Iterable[str], wanted: str | None) -> str:
    """What the names of the backbone start with.

    Args:
        names: Full names of all tensors.
        wanted: The prefix, or how it begins, to choose from several; None to take the
            only one.

    Raises:
        CheckpointError: If there are several, or none that begins like this.
    """
    found = matching = backbone_prefixes(names)
    if wanted is not None:
        start = wanted if wanted.endswith('.') or not wanted else f'{wanted}.'
        matching = [p for p in found if p == start]
        matching = matching or [p for p in found if p.startswith(start)]
    choices = [f'--from-prefix {shlex.quote(prefix)}' for prefix in found]
    if len(matching) > 1:
        raise CheckpointError(
            f'it has {len(found)} backbones; choose one with {" or ".join(choices)}'
        )
    if found and not matching:
        raise CheckpointError(
            f"no backbone's names start with {wanted!r}; give {' or '.join(choices)}"
        )
    return matching[0] if matching else ''


def rename_heads(records: list[Record], current: bool) -> None:
    """Rename what surrounds a released backbone as mmseg 1.x and mmdet 3.x name it.

    Args:
        records: All records.
        current: Whether heads have the names of mmseg 1.x or mmdet 3.x already.

    Raises:
        CheckpointError: If the heads are of mmdet 1.x.
    """
    heads = [record for record in records if record.in_head]
    names = {record.name.partition('.')[0] for record in heads}
    if not current and 'rpn_head' in names and names & {'bbox_head', 'mask_head'}:
        raise CheckpointError(
            'its heads are those of mmdet 1.x, which numbered the classes differently; '
            "upgrade it with mmdet's tools/model_converters/upgrade_model_version.py"
        )
    taken: set[str] = set()
    for record in heads:
        head = rename_head(record.name)
        reason = explain_dropped(record.name)
        if reason:
            record.settle(Fate.DROPPED, reason)
            record.in_head = False
        elif current:
            continue
        elif head is None or head in taken:
            record.fate = Fate.UNKNOWN
        else:
            taken.add(head)
            record.name = head


def drop_heads(records: list[Record], prefix: str | None) -> str:
    """Drop the heads where only the backbone is to be written.

    Args:
        records: All records.
        prefix: What the backbone's names are to start with; None for ``backbone.`` if
            there are heads and for none otherwise. Any other than ``backbone.`` is the
            backbone's alone.

    Returns:
        The prefix.
    """
    heads = [record for record in records if record.in_head]
    if prefix is None:
        prefix = BACKBONE if heads else ''
    if prefix != BACKBONE:
        reason = f'a head; with the prefix {prefix!r} only the backbone is written'
        for head in heads:
            head.settle(Fate.DROPPED, reason)
    return prefix


def is_classifier(records: Iterable[Record], kept: bool = True) -> bool:
    """Whether there is the linear layer of a model of mmpretrain.

    Args:
        records: All records.
        kept: Whether only one that the result has counts.
    """
    fates = [Fate.CONVERTED] if kept else list(Fate)
    return any(
        r.in_head and r.fate in fates and r.name.startswith(LINEAR_LAYER)
        for r in records
    )


def keep_classifier(records: list[Record], family: str) -> None:
    """Give a released classifier's own tensors the names that mmpretrain's models have.

    SLaK's norm is the neck's, `PooledLayerNorm`, after the mean over the last map.
    RepLKNet's comes before the mean, as the norm of its last output.

    Args:
        records: All records, by released names.
        family: ``slak`` or ``replknet``.

    Raises:
        CheckpointError: If it has no linear layer.
    """
    stages = {
        r.name.split('.')[1] for r in records if re.match(r'stages\.\d+\.', r.name)
    }
    norm = 'neck.' if family == 'slak' else f'stages.{len(stages) - 1}.norm.'
    for record in in_progress(records):
        part, _, end = record.name.partition('.')
        if part == 'norm':
            record.name, record.in_head = norm + end, family == 'slak'
        elif part == 'head':
            record.name, record.in_head = LINEAR_LAYER + end, True
    if not is_classifier(records):
        raise CheckpointError('it has no classifier to keep; leave out --classifier')


def drop_classifier_norm(records: list[Record], released: bool) -> None:
    """Drop the norm of a classifier that is named like one of the outputs.

    mmpretrain gives the last stage of a RepLKNet an output norm and puts the
    classifier's there, and so do our pre-training configs. Where every stage has one,
    or where heads that were trained on it are kept, the norms are the outputs' own.

    Args:
        records: All records.
        released: Whether the source has the released names, among which a backbone
            alone is a classifier's too.
    """
    if is_classifier(records) or not (released or is_classifier(records, kept=False)):
        return
    body = in_progress(records)
    stages = {r.name.split('.')[1] for r in body if r.name.startswith('stages.')}
    norms = [r for r in body if re.match(r'norm\d+\.', r.name)]
    last = f'norm{len(stages) - 1}.'
    if all(r.name.startswith(last) for r in norms) and not has_dense_heads(records):
        for record in norms:
            record.settle(
                Fate.DROPPED,
                "the classifier's norm, which mmpretrain names like an output's",
            )


def has_dense_heads(records: list[Record]) -> bool:
    """Whether the source has heads that were trained on the norms of the outputs."""
    return has_heads(records) and not is_classifier(records, kept=False)


def has_heads(records: Iterable[Record]) -> bool:
    """Whether the source is a whole model, even if its heads are dropped."""
    return any(record.in_head for record in records)


def rename_backbone(
    records: list[Record],
    family: str,
    rename_all: Callable[[Mapping[str, Any], str], Renamed],
) -> None:
    """Rename the backbone's tensors by `from_released` or `to_released`."""
    by_name = {record.name: record for record in in_progress(records)}
    renamed = rename_all(by_name, family)
    for name in renamed.unknown:
        by_name[name].settle(Fate.UNKNOWN)
    for name, reason in renamed.dropped.items():
        by_name[name].settle(Fate.DROPPED, reason)
    for name, record in renamed.converted.items():
        record.name = name


def compare_with_backbone(records: list[Record], backbone: dict[str, Any]) -> None:
    """Find the tensors that a backbone has no place for, and add those it misses.

    Args:
        records: All records, the backbone's tensors by this package's names.
        backbone: Config of the backbone.
    """
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in build_backbone(backbone).state_dict().items()
    }
    body = {record.name: record for record in in_progress(records)}
    for name, record in body.items():
        if name not in expected:
            record.settle(Fate.UNKNOWN)
        elif expected[name] != record.shape:
            record.settle(Fate.MISMATCHED)
            record.expected = expected[name]
    norms = {name for name in expected if name.startswith(_OUTPUT_NORMS)}
    # Heads were trained on the norms' outputs: without them the source is damaged.
    without_norms = norms.isdisjoint(body) and not has_dense_heads(records)
    for name in (name for name in expected if name not in body):
        reason = ''
        if without_norms and name in norms:
            reason = 'an output norm, which a classifier does not have'
        elif name.endswith('num_batches_tracked'):
            reason = 'a counter that checkpoints before PyTorch 0.4 lack'
        fate = Fate.INITIAL if reason else Fate.MISSING
        records.append(Record(name, fate=fate, reason=reason))


def replace_tensors(records: list[Record], tensors: Mapping[str, Tensor]) -> None:
    """Give tensors of the backbone other values, by name."""
    for record in in_progress(records):
        record.tensor = tensors.get(record.name, record.tensor)


def replace_by_pelk(records: list[Record], start: WarmStart) -> list[Record]:
    """Replace the tensors that a PeLK starts from by those of the PeLK."""
    body = {record.name: record for record in in_progress(records)}
    used = {origin for origins in start.origins.values() for origin in origins}
    replaced = {*(body[name] for name in used), *with_fate(records, Fate.INITIAL)}
    for name in body.keys() - used:
        body[name].settle(Fate.DROPPED, 'PeLK has nothing that corresponds')
    reason = 'nothing in the source corresponds'
    return [
        *(record for record in records if record not in replaced),
        *(Record(name, fate=Fate.INITIAL, reason=reason) for name in start.initial),
        *(
            Record(name, ', '.join(body[o].source for o in start.origins[name]), tensor)
            for name, tensor in start.tensors.items()
        ),
    ]


def assemble(records: list[Record], prefix: str) -> list[Record]:
    """Give the backbone's tensors their prefix and put the heads after them."""
    for record in in_progress(records):
        record.name = prefix + record.name
    return sorted(records, key=lambda record: record.in_head)
