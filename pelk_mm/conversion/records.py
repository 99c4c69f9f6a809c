"""What becomes of every tensor of a checkpoint, step by step.

A conversion keeps one `Record` per tensor. Each step changes the records of the
backbone's tensors that are still in progress; those of heads and of tensors that have
no place in the result are settled.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from torch import Tensor

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.checkpoints.rules import Renamed, rename_head

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
        mismatched={
            r.source: (list(r.shape), list(r.expected))
            for r in with_fate(records, Fate.MISMATCHED)
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
    for record in records:
        head = rename_head(record.name)
        if record.name.startswith(BACKBONE):
            record.name = record.name.removeprefix(BACKBONE)
        elif head is None or head in taken:
            record.fate = Fate.UNKNOWN
        else:
            taken.add(head)
            record.name, record.in_head = head, True
    return records


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
    is_classifier = norms.isdisjoint(body) and not any(r.in_head for r in records)
    for name in (name for name in expected if name not in body):
        reason = ''
        if is_classifier and name in norms:
            reason = 'an output norm, which a classifier does not have'
        elif name.endswith('num_batches_tracked'):
            reason = 'a counter that checkpoints before PyTorch 0.4 lack'
        fate = Fate.INITIAL if reason else Fate.MISSING
        records.append(Record(name, fate=fate, reason=reason))


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
        for head in heads:
            head.settle(Fate.DROPPED, reason)
    for record in in_progress(records):
        record.name = prefix + record.name
    return sorted(records, key=lambda record: record.in_head)
