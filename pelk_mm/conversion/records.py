"""What becomes of every tensor of a checkpoint, step by step.

A conversion keeps one `Record` per tensor. Each step takes the records of the
backbone's tensors that are still in progress and returns new ones; those of heads and
of tensors that have no place in the result are settled.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from torch import Tensor

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.checkpoints.rules import from_released, rename, rename_head, to_released

from .infer import build_backbone
from .warm_start import WarmStart

BACKBONE = 'backbone.'

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


@dataclass(frozen=True)
class Record:
    """A tensor of the source or of the result.

    Attributes:
        name: Its name; every step of the conversion brings it nearer to the result's.
        source: Its full name in the source; '' if it was made of no tensor there and a
            list in words if it was made of several.
        tensor: Its value, None where the source does not have it.
        in_head: Whether it belongs to a head or a neck.
        fate: What becomes of it.
        reason: Why it is dropped or left at its initial value.
        expected: The backbone's shape, if that of the tensor is another.
    """

    name: str
    source: str = ''
    tensor: Tensor | None = None
    in_head: bool = False
    fate: Fate = Fate.CONVERTED
    reason: str = ''
    expected: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return () if self.tensor is None else tuple(self.tensor.shape)


def in_progress(record: Record) -> bool:
    """Whether a record is of a tensor of the backbone that is still converted."""
    return record.fate is Fate.CONVERTED and not record.in_head


def advance(
    records: list[Record], step: Callable[[list[Record]], list[Record]]
) -> list[Record]:
    """Apply a step to the records in progress; the others come first, unchanged."""
    settled = [record for record in records if not in_progress(record)]
    return settled + step(list(filter(in_progress, records)))


def tensors_by_name(records: Iterable[Record]) -> dict[str, Tensor]:
    """Tensors to be converted by name."""
    return {
        record.name: record.tensor
        for record in records
        if record.fate is Fate.CONVERTED and record.tensor is not None
    }


def find_problems(records: list[Record]) -> dict[str, Any]:
    """What keeps a conversion from being complete, by the attributes of `Report`."""
    return dict(
        missing=[r.name for r in records if r.fate is Fate.MISSING],
        unknown=[r.source for r in records if r.fate is Fate.UNKNOWN],
        mismatched={
            r.source: (list(r.shape), list(r.expected))
            for r in records
            if r.fate is Fate.MISMATCHED
        },
    )


def split_parts(tensors: dict[str, Tensor]) -> list[Record]:
    """Records of backbone and heads, the backbone's without prefix, the heads' renamed.

    Args:
        tensors: Tensors of a backbone or of a whole model by full name.

    Raises:
        CheckpointError: If the heads are of mmdet 1.x.
    """
    bare = {name: name for name in tensors}
    while all(name.startswith('module.') for name in bare):
        bare = {name.removeprefix('module.'): full for name, full in bare.items()}
    records = [Record(name, full, tensors[full]) for name, full in bare.items()]
    if not any(name.startswith(BACKBONE) for name in bare):
        return records
    if any(name.startswith('rpn_head.') for name in bare) and any(
        name.startswith(('bbox_head.', 'mask_head.')) for name in bare
    ):
        raise CheckpointError(
            'its heads are those of mmdet 1.x, which numbered the classes differently; '
            "upgrade it with mmdet's tools/model_converters/upgrade_model_version.py"
        )
    taken: set[str] = set()
    for i, record in enumerate(records):
        head = rename_head(record.name)
        if record.name.startswith(BACKBONE):
            name = record.name.removeprefix(BACKBONE)
            records[i] = replace(record, name=name)
        elif head is None or head in taken:
            records[i] = replace(record, fate=Fate.UNKNOWN)
        else:
            taken.add(head)
            records[i] = replace(record, name=head, in_head=True)
    return records


def rename_to_ours(body: list[Record], family: str) -> list[Record]:
    """Rename from the released names."""
    by_name = {record.name: record for record in body}
    renamed = from_released(by_name, family)
    return [
        *(replace(by_name[name], fate=Fate.UNKNOWN) for name in renamed.unknown),
        *(
            replace(by_name[name], fate=Fate.DROPPED, reason=reason)
            for name, reason in renamed.dropped.items()
        ),
        *(replace(record, name=name) for name, record in renamed.converted.items()),
    ]


def rename_to_released(body: list[Record], family: str) -> list[Record]:
    """Rename to the released names."""
    by_name = {record.name: record for record in body}
    renamed = to_released(by_name, family)
    return [
        *(replace(by_name[name], fate=Fate.UNKNOWN) for name in renamed.unknown),
        *(replace(record, name=name) for name, record in renamed.converted.items()),
    ]


def compare_with_backbone(
    body: list[Record], backbone: dict[str, Any], has_heads: bool
) -> list[Record]:
    """Find the tensors that a backbone has no place for, and those that it misses.

    Args:
        body: The backbone's tensors by this package's names.
        backbone: Config of the backbone.
        has_heads: Whether the checkpoint contains heads.
    """
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in build_backbone(backbone).state_dict().items()
    }
    records = []
    for record in body:
        shape = expected.get(record.name)
        if shape is None:
            record = replace(record, fate=Fate.UNKNOWN)
        elif shape != record.shape:
            record = replace(record, fate=Fate.MISMATCHED, expected=shape)
        records.append(record)
    names = {record.name for record in body}
    norms = {name for name in expected if name.startswith(_OUTPUT_NORMS)}
    # Heads were trained on the norms' outputs: without them the source is damaged.
    is_classifier = not has_heads and not norms & names
    for name in (name for name in expected if name not in names):
        fate, reason = Fate.INITIAL, ''
        if is_classifier and name in norms:
            reason = 'an output norm, which a classifier does not have'
        elif name.endswith('num_batches_tracked'):
            reason = 'a counter that checkpoints before PyTorch 0.4 lack'
        else:
            fate = Fate.MISSING
        records.append(Record(name, fate=fate, reason=reason))
    return records


def show_released_name(record: Record, family: str) -> Record:
    """Give what the source lacks the name that it would have there."""
    if record.fate is not Fate.MISSING:
        return record
    released = rename(record.name, family, to_released=True)
    return replace(record, name=released or record.name)


def replace_by_pelk(body: list[Record], start: WarmStart) -> list[Record]:
    """Replace the tensors that a PeLK starts from by those of the PeLK."""
    sources = {record.name: record.source for record in body}
    used = {origin for origins in start.origins.values() for origin in origins}
    reason = 'nothing in the source corresponds'
    return [
        *(
            replace(
                record, fate=Fate.DROPPED, reason='PeLK has nothing that corresponds'
            )
            for record in body
            if record.name not in used
        ),
        *(Record(name, fate=Fate.INITIAL, reason=reason) for name in start.initial),
        *(
            Record(name, ', '.join(sources[o] for o in start.origins[name]), tensor)
            for name, tensor in start.tensors.items()
        ),
    ]


def assemble(records: list[Record], prefix: str | None) -> list[Record]:
    """Give the backbone's tensors their prefix and put the heads after them.

    Args:
        records: All records.
        prefix: The prefix; None for ``backbone.`` if there are heads and for none
            otherwise. Heads are dropped with any other prefix than ``backbone.``.
    """
    heads = [record for record in records if record.in_head]
    if prefix is None:
        prefix = BACKBONE if heads else ''
    if prefix != BACKBONE:
        reason = f'a head; with the prefix {prefix!r} only the backbone is written'
        heads = [replace(head, fate=Fate.DROPPED, reason=reason) for head in heads]
    body = [record for record in records if not record.in_head]
    return [
        replace(record, name=prefix + record.name) if in_progress(record) else record
        for record in body
    ] + heads
