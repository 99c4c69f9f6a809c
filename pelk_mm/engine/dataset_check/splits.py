"""The data sets that a config's dataloaders have, each without its wrappers."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from pelk_mm.checkpoints.files import first_line
from pelk_mm.config_types import entry, section, type_name

from ..config_edit import _dicts, crop_sizes
from .coco_file import check_coco_file, reads_coco
from .findings import Finding
from .reading import Expected

SPLITS = ('train', 'val', 'test')

#: Endings of files that a folder's data set could be meant to read.
_IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')

#: Our backbones, which need `reading.LEAST_SIDE` pixels.
_BACKBONES = ('PeLK', 'SLaK', 'RepLKNet')


@dataclass
class Part:
    """A data set of a split.

    Attributes:
        place: Where the config has it.
        kind: Name of its class.
        dataset: The data set, which only loads; None if it cannot be opened.
        expected: What its samples should be like.
        classes: Names of its classes, if it has any.
        findings: What is wrong with it as a whole.
    """

    place: str
    kind: str
    dataset: Any
    expected: Expected
    classes: tuple[str, ...] | None
    findings: list[Finding]


def data_set_configs(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Find the data sets inside wrappers such as RepeatDataset and ConcatDataset.

    Args:
        node: Config of a data set.
        place: Where the config has it.

    Yields:
        Place and config of each.
    """
    if isinstance(node.get('dataset'), dict):
        yield from data_set_configs(node['dataset'], f'{place}.dataset')
    elif isinstance(node.get('datasets'), (list, tuple)):
        for number, each in enumerate(node['datasets']):
            yield from data_set_configs(each, f'{place}.datasets[{number}]')
    else:
        yield place, node


def open_split(cfg: Config, split: str) -> list[Part]:
    """Open the data sets of a split; what is wrong is among their findings.

    Args:
        cfg: The config.
        split: One of `SPLITS`.
    """
    loader = cfg[f'{split}_dataloader']
    return [
        _open(cfg, split, place, node)
        for place, node in data_set_configs(
            loader['dataset'], f'{split}_dataloader.dataset'
        )
    ]


def _open(cfg: Config, split: str, place: str, node: Any) -> Part:
    steps = _loading_steps(node.get('pipeline') or [])
    kind = type_name(node.get('type'))
    part = Part(place, kind, None, Expected(), None, [])
    if not steps:
        detail = 'its pipeline has no step whose name begins with Load'
        part.findings.append(Finding('dataset', place, detail))
        return part
    # With all images, also those that a filter would leave out.
    changes: dict[str, Any] = {'pipeline': steps, 'lazy_init': True}
    if 'filter_cfg' in node:
        changes['filter_cfg'] = None
    config = {**node, **changes}
    try:
        # pycocotools prints what it does, mm warns of its own names.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            dataset = DATASETS.build(config)
            classes = dataset.metainfo.get('classes')
            if isinstance(classes, str):
                detail = f'{classes!r} is not a tuple; a single class needs a comma'
                part.findings.append(Finding('classes', f'{place}.metainfo', detail))
                return part
            part.classes = None if classes is None else tuple(classes)
            part.expected = _expectation(cfg, split, node, part.classes)
            part.findings += _check_whole(cfg, split, place, dataset, part)
            if any(found.kind == 'annotation_file' for found in part.findings):
                return part
            dataset.full_init()
    except Exception as error:  # whatever a data set raises at its files
        if 'to concatenate' in str(error):  # how mmengine serializes no samples
            part.findings.append(Finding('dataset', place, _explain_empty(dataset)))
        elif not any(found.level == 'error' for found in part.findings):
            part.findings.append(Finding('dataset', place, _reason(error)))
        return part
    if not len(dataset):
        part.findings.append(Finding('dataset', place, _explain_empty(dataset)))
        return part
    part.dataset = dataset
    part.findings += _unread_files(dataset)
    return part


def _reason(error: Exception) -> str:
    text = first_line(error)
    return f'it needs the key {text}' if isinstance(error, KeyError) else text


def _loading_steps(pipeline: Any) -> list[Any]:
    """Steps that load, also those inside others, one of each kind."""
    steps: dict[str, Any] = {}
    for step in _dicts(pipeline):
        name = type_name(step.get('type'))
        if name.startswith('Load'):
            steps.setdefault(name, step)
    return list(steps.values())


# ---------------------------------------------------------------------- what to expect


def _expectation(
    cfg: Config, split: str, node: Any, classes: tuple[str, ...] | None
) -> Expected:
    model = section(cfg, 'model')
    heads = [
        part
        for key in ('decode_head', 'auxiliary_head')
        for part in _dicts(model.get(key))
        if 'num_classes' in part
    ]
    losses = [loss for head in heads for loss in _dicts(head.get('loss_decode'))]
    crops = {k: v for k, v in crop_sizes(cfg).items() if k.startswith('RandomCrop')}
    loads = _loading_steps(node.get('pipeline'))
    return Expected(
        classes=None if classes is None else len(classes),
        ignored=heads[0].get('ignore_index', 255) if heads else 255,
        channels=section(model, 'backbone').get('in_channels', 3),
        crop=next(iter(crops.values()), None) if heads and split == 'train' else None,
        tested_at=_tested_at(model, split, node),
        masks=any(step.get('with_mask') for step in loads),
        any_label=bool(losses) and all(loss.get('use_sigmoid') for loss in losses),
    )


def _tested_at(model: Any, split: str, node: Any) -> dict[str, Any] | None:
    """Arguments of ``Resize`` where a segmenter of ours gets images as they are."""
    test_cfg = entry(model, 'data_preprocessor', 'test_cfg')
    if (
        split == 'train'
        or 'decode_head' not in model
        or type_name(entry(model, 'backbone', 'type')) not in _BACKBONES
        or entry(test_cfg, 'size_divisor')
        or entry(test_cfg, 'size')
    ):
        return None
    for step in _dicts(node.get('pipeline')):
        if type_name(step.get('type')) == 'Resize':
            return dict(step)
    return {}


# ---------------------------------------------------------------------- the whole set


def _check_whole(
    cfg: Config, split: str, place: str, dataset: Any, part: Part
) -> list[Finding]:
    """Check classes and annotation file, before the data set reads the latter."""
    model = section(cfg, 'model')
    findings = []
    dense = 'decode_head' in model or 'roi_head' in model or 'bbox_head' in model
    if part.classes is None and dense:
        detail = "names no classes; set metainfo=dict(classes=('first', 'second', ...))"
        findings.append(Finding('classes', place, detail))
    elif part.classes is not None:
        counts = {
            head['num_classes']
            for head in _dicts(model, skip=('backbone', 'rpn_head', 'semantic_head'))
            if type(head.get('num_classes')) is int
            and type_name(head.get('type')) != 'STDCHead'  # it tells boundaries
            # One channel separates two classes, which mmseg also calls one.
            and not (head.get('out_channels') == 1 and len(part.classes) <= 2)
        }
        for count in sorted(counts - {len(part.classes)}):
            detail = f'{len(part.classes)} classes, a head has num_classes={count}'
            findings.append(Finding('classes', place, detail))
    if reads_coco(dataset):
        findings += check_coco_file(
            dataset.ann_file,
            part.classes,
            masks=part.expected.masks,
            evaluated=split != 'train',
            backend_args=dataset.backend_args,
        )
    return findings


def _explain_empty(dataset: Any) -> str:
    folder = _image_folder(dataset)
    suffix = getattr(dataset, 'img_suffix', None)
    if folder and suffix:
        return f'no file in {folder} ends in {suffix!r}; set img_suffix'
    return 'has no images'


def _image_folder(dataset: Any) -> str:
    """Folder that a data set takes all images of; empty if it has a list instead."""
    prefix = getattr(dataset, 'data_prefix', {}).get('img_path') or ''
    listed = getattr(dataset, 'ann_file', '')
    return '' if os.path.isfile(listed) or not os.path.isdir(prefix) else prefix


def _unread_files(dataset: Any) -> Iterator[Finding]:
    folder, suffix = _image_folder(dataset), getattr(dataset, 'img_suffix', None)
    if not folder or not isinstance(suffix, str):
        return
    unread = [
        path
        for path in Path(folder).rglob('*')
        if path.suffix.lower() in _IMAGE_SUFFIXES and not path.name.endswith(suffix)
    ]
    for path in sorted(unread):
        yield Finding('unread_files', str(path))
