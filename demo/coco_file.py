"""A COCO annotation file: what it lacks, and which of its objects mmdet trains on."""

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

#: Fields that training and evaluation read, by the list that they are in. ``area`` and
#: ``iscrowd`` are read too, and completed where they are missing.
FIELDS = {
    'images': ('id', 'file_name', 'width', 'height'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'segmentation'),
    'categories': ('id', 'name'),
}
#: Fields that no two entries of a list may share.
UNIQUE = {'images': ('id',), 'annotations': ('id',), 'categories': ('id', 'name')}
#: The config's ``filter_cfg`` leaves out images with a shorter side.
MIN_SIDE = 32


class AnnotationError(ValueError):
    """An annotation file that lacks what training needs."""


def read_annotations(path: Path) -> dict[str, Any]:
    """Read a COCO annotation file.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        AnnotationError: If it is not in COCO's format; the message names the file, the
            entry and the field.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} does not exist; name a folder in the layout of COCO with --data'
        )
    try:
        contents = json.loads(path.read_bytes())
    except ValueError as error:
        raise AnnotationError(f'{path} is no JSON: {error}') from error
    for key, fields in FIELDS.items():
        entries = contents.get(key) if isinstance(contents, dict) else None
        if not isinstance(entries, list):
            raise AnnotationError(
                f'{path} has no list {key!r}, as a COCO file of objects has'
            )
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise AnnotationError(
                    f'{path}: entry {number + 1} of {key!r} is {entry!r}, no object'
                )
            for field in fields:
                if field not in entry:
                    raise AnnotationError(
                        f'{path}: {_describe(key, number, entry)} has no {field!r}'
                    )
        for field in UNIQUE[key]:
            counts = Counter(entry[field] for entry in entries)
            for value, times in counts.most_common(1):
                if times > 1:
                    raise AnnotationError(
                        f'{path}: {times} {key} have the {field} {value!r}'
                    )
    for number, entry in enumerate(contents['annotations']):
        box = entry['bbox']
        if not (
            isinstance(box, list)
            and len(box) == 4
            and all(isinstance(x, (int, float)) and math.isfinite(x) for x in box)
        ):
            raise AnnotationError(
                f'{path}: {_describe("annotations", number, entry)} has the bbox '
                f'{box!r} instead of [x, y, width, height]'
            )
    return contents


def _describe(key: str, number: int, entry: dict[str, Any]) -> str:
    kind = {'images': 'image', 'annotations': 'annotation', 'categories': 'category'}
    if 'id' in entry:
        return f'{kind[key]} {entry["id"]}'
    return f'{kind[key]} number {number + 1} of the list'


def usable_objects(
    contents: dict[str, Any],
) -> tuple[dict[int, list[dict[str, Any]]], Counter[str]]:
    """Sort out the objects that mmdet trains on, as its `CocoDataset` does.

    Args:
        contents: A file's contents, from `read_annotations`.

    Returns:
        The objects of each image by its id, copies with ``area``, that of the mask
        where the file has none, and ``iscrowd``; and how many others were left out,
        by the reason.
    """
    images = {image['id']: image for image in contents['images']}
    categories = {category['id'] for category in contents['categories']}
    objects = defaultdict(list)
    left_out: Counter[str] = Counter()
    for entry in contents['annotations']:
        image = images.get(entry['image_id'])
        reason = _why_unusable(entry, image, categories)
        if reason is not None:
            left_out[reason] += 1
            continue
        area = entry.get('area')
        if not isinstance(area, (int, float)) or not area > 0:
            area = _mask_area(entry['segmentation'], image['height'], image['width'])
        if area > 0:
            objects[image['id']].append({**entry, 'area': area, 'iscrowd': 0})
        else:
            left_out['empty mask'] += 1
    return dict(objects), left_out


def _why_unusable(
    entry: dict[str, Any], image: dict[str, Any] | None, categories: set[Any]
) -> str | None:
    """Why an object is not trained on, None if it is."""
    if image is None:
        return 'image not in the file'
    if entry['category_id'] not in categories:
        return 'category not in the file'
    if entry.get('ignore'):
        return "marked 'ignore'"
    if entry.get('iscrowd'):
        return 'crowd'
    width, height = image['width'], image['height']
    if min(width, height) < MIN_SIDE:
        return f'image under {MIN_SIDE} pixels'
    x, y, w, h = entry['bbox']
    if w < 1 or h < 1:
        return 'empty box'
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return 'box outside its image'
    mask = entry['segmentation']
    if isinstance(mask, dict):
        if not isinstance(mask.get('counts'), (list, str)) or mask.get('size') != [
            height,
            width,
        ]:
            return 'RLE mask without counts or of another size than its image'
    elif not isinstance(mask, list) or not _polygons(mask):
        return 'no mask'
    return None


def _polygons(mask: list[Any]) -> list[Any]:
    """The polygons that mmdet takes: at least three points, as x and y in turns."""
    return [p for p in mask if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0]


def _mask_area(mask: Any, height: int, width: int) -> int:
    """Number of pixels of a mask, polygons or RLE."""
    # Here: a wrong argument should not wait for numpy to load.
    from pycocotools import mask as coco

    if isinstance(mask, list):
        encoded = coco.merge(coco.frPyObjects(_polygons(mask), height, width))
    elif isinstance(mask['counts'], list):
        encoded = coco.frPyObjects(mask, height, width)
    else:
        encoded = mask
    return int(coco.area(encoded))
