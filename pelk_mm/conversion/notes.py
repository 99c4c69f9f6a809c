"""What a result says of itself: its origin, class names and colours, and config."""

import ast
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pelk_mm.version import __version__

from .report import Report

#: Where checkpoints note class names and colours: mm 1.x and the versions before.
_CLASS_NOTES = 'dataset_meta', 'CLASSES', 'PALETTE'

#: Arguments of a backbone that every family has and no weight depends on.
_COMMON = ('drop_path_rate', 'frozen_stages', 'norm_eval', 'with_cp')


def make_meta(
    meta: Mapping[str, Any], report: Report, cfg: str | None
) -> dict[str, Any]:
    """Notes for the result of a conversion.

    Args:
        meta: The source's.
        report: The conversion.
        cfg: Text of the config that the result fits, if there is one.

    Returns:
        Plain containers: the source's file and hash, this package's version, the
        backbone's config and, where there are any, ``dataset_meta`` and ``cfg``.
    """
    notes: dict[str, Any] = dict(
        source=dict(
            file=Path(report.source).name, sha256=report.sha256, key=report.key
        ),
        pelk_mm_version=__version__,
        backbone=report.backbone,
    )
    dataset_meta = find_dataset_meta(meta)
    if dataset_meta is not None:
        notes['dataset_meta'] = dataset_meta
    if cfg is not None:
        notes['cfg'] = cfg
    return notes


def plain_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's notes as plain containers, class names in mm 1.x's form."""
    notes = {k: v for k, v in _plain(meta).items() if k not in _CLASS_NOTES}
    dataset_meta = find_dataset_meta(meta)
    return notes if dataset_meta is None else notes | dict(dataset_meta=dataset_meta)


def find_dataset_meta(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """Class names, their colours and what else is known of the data, in mm 1.x's form.

    mmseg and mmdet look both up without asking whether they are there. So colours that
    are missing are drawn, as mmseg 0.x drew them.

    Args:
        meta: A checkpoint's: ``dataset_meta`` of mmseg 1.x and mmdet 3.x with keys in
            either case, or ``CLASSES`` and ``PALETTE`` of mmseg 0.x and mmdet 2.x.

    Returns:
        The data set's with lists for arrays and tuples; None without class names.
    """
    given = meta.get('dataset_meta')
    for source in (given, meta) if isinstance(given, Mapping) else (meta,):
        found = {str(key).lower(): value for key, value in source.items()}
        classes = _plain(found.get('classes'))
        if isinstance(classes, str):
            classes = [classes]
        if not isinstance(classes, list) or not classes:
            continue
        others = _plain(found) if source is given else {}
        palette = _palette(_plain(found.get('palette')), len(classes))
        return others | dict(classes=list(map(str, classes)), palette=palette)
    return None


def _palette(given: Any, classes: int) -> list[tuple[int, ...]]:
    """A colour for each class: the given ones, or else random ones.

    Tuples, since mmdet takes a list for several colours.
    """
    try:
        palette = np.array(given, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):  # None, names, rows of other lengths
        palette = np.empty(0, dtype=np.int64)
    if palette.shape == (3,):  # mmdet: one colour for all
        palette = np.tile(palette, (classes, 1))
    # A data set with fewer classes than its base class may have that one's colours.
    if palette.ndim != 2 or palette.shape[1] != 3 or len(palette) < classes:
        palette = np.random.RandomState(42).randint(0, 255, size=(classes, 3))
    return [tuple(colour) for colour in palette[:classes].tolist()]


def _plain(value: Any, parents: tuple[int, ...] = ()) -> Any:
    """A value without arrays and tuples, as JSON and any loader takes it."""
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        value = value.tolist()
    if isinstance(value, (str, int, float, type(None))):
        return value
    parents += (id(value),)
    if id(value) not in parents[:-1]:
        if isinstance(value, Mapping):
            return {
                k if isinstance(k, (str, int)) else str(k): _plain(v, parents)
                for k, v in value.items()
            }
        if isinstance(value, (Sequence, Set)):
            return [_plain(part, parents) for part in value]
    return f'a {type(value).__name__}'


def adjust_backbone(text: str, changes: Mapping[str, Any]) -> str | None:
    """Change arguments of ``model.backbone`` in the text of a config.

    The text comes from a checkpoint and is not run.

    Args:
        text: The config as mmengine saves it: assignments of literals.
        changes: Arguments to set; with ``type`` among them all others but those that
            all families have are removed.

    Returns:
        The new text, the same where nothing changes; None if there is no
        ``model.backbone`` to change in it.
    """
    if not changes:
        return text
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    models = [
        statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and [ast.unparse(target) for target in statement.targets] == ['model']
    ]
    backbone = _items(models[-1]).get('backbone') if models else None
    items = _items(backbone)
    if backbone is None or 'type' not in items:
        return None
    if 'type' in changes:
        items = {key: items[key] for key in _COMMON if key in items}
    items |= {key: ast.parse(repr(v)).body[0].value for key, v in changes.items()}  # type: ignore[attr-defined]
    if isinstance(backbone, ast.Call):
        backbone.keywords = [ast.keyword(key, value) for key, value in items.items()]
    else:
        backbone.keys = [ast.Constant(key) for key in items]  # type: ignore[attr-defined]
        backbone.values = list(items.values())  # type: ignore[attr-defined]
    return ast.unparse(ast.fix_missing_locations(tree)) + '\n'


def _items(node: ast.AST | None) -> dict[str, ast.expr]:
    """Entries of a dict that is written as ``dict(...)`` or ``{...}``."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'dict':
        return {word.arg: word.value for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        return {
            key.value: value
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant) and isinstance(key.value, str)
        }
    return {}
