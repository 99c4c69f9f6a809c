"""Check an annotation file in COCO's format before mmdet reads it."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmengine import fileio

from pelk_mm.checkpoints.files import first_line

from .findings import Finding

#: Lists of a file, and the keys that mmdet needs of their entries.
_NEEDED: dict[str, tuple[str, ...]] = {
    'images': ('id', 'file_name', 'height', 'width'),
    'annotations': ('id',),
    'categories': ('id', 'name'),
}


#: Sides of its image that a polygon may go beyond it.
FAR = 10
#: Where the last digit of a run may be in a compressed RLE.
_MAX_SHIFT = 60


def _is_id(value: Any) -> bool:
    return value is None or isinstance(value, (str, int))


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_side(value: Any) -> bool:
    return value is None or (type(value) is int and 0 < value < 1 << 31)


#: What the values of some keys have to be, where an entry has them.
_FORMS: dict[str, Callable[[Any], bool]] = {
    'id': _is_id,
    'image_id': _is_id,
    'category_id': _is_id,
    'file_name': _is_text,
    'name': _is_text,
    'height': _is_side,
    'width': _is_side,
}


def check_coco_file(
    path: str,
    classes: Sequence[str] | None,
    masks: bool = False,
    evaluated: bool = False,
    backend_args: dict[str, Any] | None = None,
) -> list[Finding]:
    """Check an annotation file.

    Args:
        path: The file.
        classes: Names of the classes of the data set, in order.
        masks: Whether objects need masks.
        evaluated: Whether pycocotools evaluates with the file.
        backend_args: Arguments of mmengine's file backend.
    """
    try:
        text = fileio.get(path, backend_args=backend_args).decode()
        contents = json.loads(text) if text.strip() else None
    except FileNotFoundError:
        return [Finding('annotation_file', path, 'does not exist')]
    except (OSError, ValueError, RecursionError) as error:  # a JSONDecodeError is one
        return [Finding('annotation_file', path, first_line(error))]
    if contents is None:
        return [Finding('annotation_file', path, 'is empty')]
    fault = _fault_of_form(contents)
    if fault:
        return [Finding('annotation_file', path, fault)]
    return [
        *_check_images(path, contents['images']),
        *_check_categories(path, contents, classes),
        *_Annotations(path, contents, masks, evaluated).check(),
    ]


def reads_coco(dataset: Any) -> bool:
    """Whether a data set reads its annotation file as mmdet's CocoDataset does."""
    return type(dataset).load_data_list.__module__ == 'mmdet.datasets.coco'


def _fault_of_form(contents: Any) -> str:
    if not isinstance(contents, dict):
        return f'holds a {type(contents).__name__} instead of an object'
    for key in _NEEDED:
        if not isinstance(contents.get(key), list):
            return f'has no list {key!r}'
        needed = _NEEDED[key]
        for number, entry in enumerate(contents[key]):
            lacks = [
                name
                for name in needed
                if not isinstance(entry, dict) or name not in entry
            ]
            if lacks:
                return f'entry {number} of {key!r} has no {", ".join(lacks)}'
            wrong = [name for name, fits in _FORMS.items() if not fits(entry.get(name))]
            if wrong:
                value = f'{wrong[0]} {entry[wrong[0]]!r:.60}'
                return f'entry {number} of {key!r} has {value}'
    if not contents['images']:
        return 'lists no images'
    return ''


def _repeated(path: str, entries: list[dict], key: str, kind: str) -> Iterator[Finding]:
    for value, count in Counter(entry[key] for entry in entries).items():
        if count > 1:
            yield Finding('ids', path, f'{kind} {key} {value!r} occurs {count} times')


def _check_images(path: str, images: list[dict]) -> Iterator[Finding]:
    yield from _repeated(path, images, 'id', 'image')
    yield from _repeated(path, images, 'file_name', 'image')


def _check_categories(
    path: str, contents: dict[str, Any], classes: Sequence[str] | None
) -> Iterator[Finding]:
    categories = contents['categories']
    yield from _repeated(path, categories, 'id', 'category')
    yield from _repeated(path, categories, 'name', 'category')
    if classes is None:
        return
    names = [category['name'] for category in categories]
    lacking = [name for name in classes if name not in names]
    if lacking:
        yield Finding(
            'classes',
            path,
            f'has no category {_listed(lacking)}; its categories are {_listed(names)}',
        )
    shared = [name for name in names if name in classes]
    if not lacking and shared != list(classes):
        yield Finding(
            'classes',
            path,
            'mmdet numbers categories as the file lists them, which is another order '
            f'than that of classes: {_listed(shared)}',
        )
    used = Counter(
        annotation.get('category_id') for annotation in contents['annotations']
    )
    for category in categories:
        count = used[category['id']]
        if category['name'] not in classes and count:
            yield Finding(
                'unused_category', path, f'{category["name"]!r}, {count} objects'
            )


def _listed(names: Sequence[Any]) -> str:
    return ', '.join(map(repr, names[:12])) + ', ...' * (len(names) > 12)


class _Annotations:
    """The annotations of a file.

    Args:
        path: The file.
        contents: What is in it; its form is correct.
        masks: Whether objects need masks.
        evaluated: Whether pycocotools evaluates with it.
    """

    def __init__(
        self, path: str, contents: dict[str, Any], masks: bool, evaluated: bool
    ) -> None:
        self.path = path
        self.annotations = contents['annotations']
        self.images = {image['id']: image for image in contents['images']}
        self.categories = {category['id'] for category in contents['categories']}
        self.masks = masks
        self.evaluated = evaluated

    def check(self) -> Iterator[Finding]:
        """Check all annotations."""
        yield from _repeated(self.path, self.annotations, 'id', 'annotation')
        strays: dict[Any, int] = defaultdict(int)
        for annotation in self.annotations:
            image = self.images.get(annotation.get('image_id'))
            if image is None:
                strays[annotation.get('image_id')] += 1
                continue
            where = f'{self.path}: annotation {annotation["id"]} ({image["file_name"]})'
            for kind, detail in self._faults(annotation, image):
                yield Finding(kind, where, detail)
        for image_id, count in strays.items():
            detail = f'image_id {image_id!r}, {count} annotations'
            yield Finding('no_image', self.path, detail)

    def _faults(self, annotation: dict, image: dict) -> Iterator[tuple[str, str]]:
        if annotation.get('category_id') not in self.categories:
            yield 'category', f'category_id {annotation.get("category_id")!r}'
        if self.evaluated and 'iscrowd' not in annotation:
            yield 'crowd_key', ''
        yield from _faults_of_box(annotation, image)
        if self.masks:
            fault = fault_of_mask(annotation.get('segmentation'), image)
            if fault:
                yield 'mask', fault


def _faults_of_box(annotation: dict, image: dict) -> Iterator[tuple[str, str]]:
    box = annotation.get('bbox')
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(n, (int, float)) and math.isfinite(n) for n in box)
    ):
        yield 'annotation', f'bbox {box!r} is not four numbers'
        return
    x, y, width, height = box
    area = annotation.get('area')
    if not isinstance(area, (int, float)) or not math.isfinite(area):
        yield 'annotation', f'area {area!r} is not a number, and mmdet needs it'
    elif width < 1 or height < 1 or area <= 0:
        yield 'box', f'bbox {box}, area {area}'
        return
    right, bottom = image['width'], image['height']
    if x >= right or y >= bottom or x + width <= 0 or y + height <= 0:
        yield 'box', f'bbox {box} in an image of {right} x {bottom}'
    elif x < -1 or y < -1 or x + width > right + 1 or y + height > bottom + 1:
        yield 'box_beyond', f'bbox {box} in an image of {right} x {bottom}'


def fault_of_mask(mask: Any, image: dict) -> str:
    """What is wrong with a ``segmentation``, or an empty string.

    pycocotools takes memory as sizes and coordinates tell it to, and dies without.

    Args:
        mask: Polygons or RLE, as a file has them.
        image: Its ``height`` and ``width``.
    """
    if not mask:
        return 'no segmentation'
    if isinstance(mask, list):
        usable = [
            part
            for part in mask
            if isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0
        ]
        if not usable:
            return 'no polygon of at least 3 points, with x and y each'
        numbers = [n for part in mask if isinstance(part, list) for n in part]
        if not all(isinstance(n, (int, float)) for n in numbers):
            return 'a polygon has something else than numbers'
        most = FAR * max(image['height'], image['width'])
        if not all(abs(n) <= most for n in numbers):
            return 'a polygon goes far beyond its image'
        return ''
    if not isinstance(mask, dict) or not isinstance(mask.get('counts'), (list, str)):
        return 'neither polygons nor RLE with counts'
    size, counts = mask.get('size'), mask['counts']
    if size != [image['height'], image['width']]:
        return (
            f'RLE of size {size!r} in an image of [{image["height"]}, '
            f'{image["width"]}] (H, W)'
        )
    try:
        runs = _decode_runs(counts) if isinstance(counts, str) else counts
        if not all(type(run) is int for run in runs):
            return 'RLE whose counts are not whole numbers'
        total = sum(runs)
    except (IndexError, ValueError, TypeError):
        return 'RLE whose counts cannot be decoded'
    if min(runs, default=0) < 0 or total != size[0] * size[1]:
        return f'RLE whose counts add up to {total} of {size[0] * size[1]} pixels'
    return ''


def _decode_runs(text: str) -> list[int]:
    """Lengths of the runs of a compressed RLE, as pycocotools encodes them.

    A run is written in digits of 5 bits, the lowest first, each a character from '0'
    on; bit 5 says that another follows, bit 4 of the last is the sign. From the fourth
    run on it is the difference to the run before the last.

    Raises:
        ValueError: If it has other characters.
        IndexError: If it ends within a run.
    """
    runs: list[int] = []
    position = 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            if shift > _MAX_SHIFT:
                raise ValueError('a run of more than 64 bits')
            digit = ord(text[position]) - 48
            if not 0 <= digit < 64:
                raise ValueError(text[position])
            value |= (digit & 0x1F) << shift
            shift, more, position = shift + 5, bool(digit & 0x20), position + 1
        if digit & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
