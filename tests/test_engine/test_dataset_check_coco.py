"""Odd annotations of a detector's data set: each is named, with what to do."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as rle

from pelk_mm.engine.dataset_check import KINDS, check_dataset, count_levels
from pelk_mm.engine.dataset_check.coco_file import _decode_runs, check_coco_file

CLASSES = ('balloon', 'kite', 'drone')


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """mmengine collects garbage for each data set, longer than it takes to read it."""
    monkeypatch.setattr('gc.collect', lambda: 0)


@pytest.fixture
def balloons(tmp_path, monkeypatch, draw_objects):
    """What the file of a sound data set says; the folder is the current one."""
    monkeypatch.chdir(tmp_path)
    return draw_objects(tmp_path / 'data/train')


def check(contents):
    """Write the file and check the data set; findings by kind, and the report."""
    text = contents if isinstance(contents, str) else json.dumps(contents)
    with open('data/train.json', 'w') as file:
        file.write(text)
    cfg = Config(
        dict(
            default_scope='mmdet',
            model=dict(
                backbone=dict(type='PeLK'),
                roi_head=dict(bbox_head=dict(num_classes=3)),
            ),
            train_dataloader=dict(
                dataset=dict(
                    type='CocoDataset',
                    data_root='data/',
                    ann_file='train.json',
                    metainfo=dict(classes=CLASSES),
                    data_prefix=dict(img='train/'),
                    filter_cfg=dict(filter_empty_gt=True, min_size=32),
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                        dict(type='PackDetInputs'),
                    ],
                )
            ),
        )
    )
    (report,) = check_dataset(cfg)
    return {found.kind: str(found) for found in report.findings}, report


def test_sound_data_with_polygons_runs_and_crowds(balloons):
    findings, report = check(balloons)
    assert findings == {}
    assert (report.images, report.unit, report.ignored) == (3, 'objects', 1)
    assert dict(report.counts) == {'balloon': 2, 'kite': 2, 'drone': 2}
    assert dict(report.images_with) == {'balloon': 2, 'kite': 2, 'drone': 1}


def change(key, value, entries='annotations'):
    def edit(contents):
        contents[entries][1][key] = value

    return edit


def drop(key, entries='annotations'):
    def edit(contents):
        del contents[entries][1][key]

    return edit


def without_objects(contents):
    contents['annotations'] = [
        entry for entry in contents['annotations'] if entry['image_id'] != 2
    ]


def crowds_alone(contents):
    for entry in contents['annotations']:
        entry['iscrowd'] = int(entry['image_id'] == 2)


def reordered(contents):
    contents['categories'].reverse()


def fourth_category(contents):
    contents['categories'].append(dict(id=40, name='bird'))
    contents['annotations'][1]['category_id'] = 40


def renamed(contents):
    contents['categories'][1]['name'] = 'Kite'


RUNS = dict(size=[120, 160], counts=[10, 5])
BROKEN = dict(size=[120, 160], counts='0\x7f')
# pycocotools takes memory for these as they tell it to, and dies without.
ENDLESS = dict(size=[120, 160], counts='o' * 1_000_000)
HUGE = dict(size=[1 << 20, 1 << 20], counts='0')
FRACTIONS = dict(size=[120, 160], counts=[19199.5, 0.5])
FAR = [0, 0, 1e9, 0, 1e9, 1e9]


@pytest.mark.parametrize(
    ('edit', 'kind', 'detail'),
    [
        (
            change('bbox', [70, 20, 0, 40]),
            'box',
            'annotation 1 (0.jpg): bbox [70, 20, 0',
        ),
        (change('bbox', [200, 20, 40, 40]), 'box', 'in an image of 160 x 120'),
        (change('bbox', [140, 20, 40, 40]), 'box_beyond', 'in an image of 160 x 120'),
        (change('area', 0), 'box', 'area 0'),
        (change('bbox', [1, 2, 3]), 'annotation', 'bbox [1, 2, 3] is not four numbers'),
        (change('bbox', [0, 0, float('nan'), 9]), 'annotation', 'is not four numbers'),
        (drop('bbox'), 'annotation', 'bbox None is not four numbers'),
        (drop('area'), 'annotation', 'area None is not a number'),
        (drop('segmentation'), 'mask', 'annotation 1 (0.jpg): no segmentation'),
        (change('segmentation', [[1, 2, 3, 4]]), 'mask', 'at least 3 points'),
        (change('segmentation', RUNS), 'mask', 'add up to 15 of 19200 pixels'),
        (change('segmentation', BROKEN), 'mask', 'cannot be decoded'),
        (change('segmentation', ENDLESS), 'mask', 'cannot be decoded'),
        (change('segmentation', HUGE), 'mask', 'RLE of size [1048576, 1048576]'),
        (change('segmentation', FRACTIONS), 'mask', 'not whole numbers'),
        (change('segmentation', [FAR, FAR]), 'mask', 'goes far beyond its image'),
        (
            change('segmentation', {'size': [9, 9], 'counts': [81]}),
            'mask',
            'size [9, 9]',
        ),
        (change('category_id', 77), 'category', 'category_id 77'),
        (change('image_id', 77), 'no_image', 'image_id 77, 1 annotations'),
        (change('id', 0), 'ids', 'annotation id 0 occurs 2 times'),
        (change('id', 0, 'images'), 'ids', 'image id 0 occurs 2 times'),
        (change('id', 10, 'categories'), 'ids', 'category id 10 occurs 2 times'),
        (change('file_name', 'no.jpg', 'images'), 'image_missing', 'data/train/no.jpg'),
        (
            change('width', 99, 'images'),
            'image_size',
            '128 x 96, the file says 99 x 96',
        ),
        (
            drop('height', 'images'),
            'annotation_file',
            "entry 1 of 'images' has no height",
        ),
        (without_objects, 'no_objects', 'data/train/2.jpg'),
        (crowds_alone, 'no_objects', 'data/train/2.jpg: crowds alone'),
        (reordered, 'classes', "another order than that of classes: 'drone', 'kite'"),
        (fourth_category, 'unused_category', "'bird', 1 objects"),
        (renamed, 'classes', "has no category 'kite'"),
    ],
)
def test_odd_annotation(balloons, edit, kind, detail):
    edit(balloons)
    findings, report = check(balloons)
    assert detail in findings[kind]
    assert '\n' not in findings[kind]
    assert count_levels([report])[KINDS[kind].level == 'warning']


@pytest.mark.parametrize(
    ('text', 'detail'),
    [
        ('', 'data/train.json: is empty'),
        ('{"images": [', 'data/train.json: Expecting value'),
        ('[]', 'holds a list instead of an object'),
        ('{}', "has no list 'images'"),
        ('{"images": [], "annotations": [], "categories": []}', 'lists no images'),
    ],
)
def test_odd_file(balloons, text, detail):
    findings, report = check(text)
    assert detail in findings['annotation_file']
    assert (report.images, list(findings)) == (0, ['annotation_file'])


def test_turned_image(balloons):
    image = Image.open('data/train/1.jpg')
    exif = Image.Exif()
    exif[274] = 8
    image.save('data/train/1.jpg', exif=exif)
    findings, _ = check(balloons)
    assert findings['image_size'] == (
        'data/train/1.jpg: 96 x 128, the file says 128 x 96 and EXIF data turns it '
        '(W x H)'
    )


def test_truncated_image(balloons):
    path = 'data/train/1.jpg'
    with open(path, 'rb') as file:
        content = file.read()
    with open(path, 'wb') as file:
        file.write(content[:900])
    findings, report = check(balloons)
    assert 'data/train/1.jpg: image file is truncated' in findings['image_truncated']
    assert report.counts['kite'] == 2  # the annotations are counted all the same


def test_what_the_evaluation_needs(balloons, tmp_path):
    del balloons['annotations'][1]['iscrowd']
    path = tmp_path / 'val.json'
    path.write_text(json.dumps(balloons))
    assert check_coco_file(str(path), CLASSES) == []
    (finding,) = check_coco_file(str(path), CLASSES, evaluated=True)
    assert finding.kind == 'crowd_key'
    (finding,) = check_coco_file(str(tmp_path / 'none.json'), CLASSES)
    assert finding.detail == 'does not exist'


@pytest.mark.parametrize('shape', [(1, 1), (7, 5), (300, 400)])
def test_compressed_runs_are_decoded_as_pycocotools_encodes_them(shape):
    rng = np.random.default_rng(0)
    mask = cv2.resize(rng.integers(0, 2, (4, 5), np.uint8), shape[::-1])
    encoded = rle.encode(np.asfortranarray(mask))
    runs = _decode_runs(encoded['counts'].decode())
    assert sum(runs) == mask.size
    assert sum(runs[1::2]) == mask.sum()
    decoded = np.repeat(np.arange(len(runs)) % 2, runs).reshape(shape[::-1]).T
    assert np.array_equal(decoded, mask)


@pytest.mark.parametrize(
    ('entries', 'key', 'value'),
    [
        ('images', 'id', [1]),
        ('images', 'file_name', 3),
        ('images', 'height', '120'),
        ('images', 'width', -1),
        ('annotations', 'image_id', {}),
        ('annotations', 'category_id', [[]]),
        ('categories', 'name', [1]),
    ],
)
def test_values_of_another_type_are_named(balloons, entries, key, value):
    balloons[entries][1][key] = value
    file = Path('a.json')
    file.write_text(json.dumps(balloons))
    (finding,) = check_coco_file(str(file), CLASSES)
    assert finding.kind == 'annotation_file'
    assert f'entry 1 of {entries!r} has {key} {value!r}' in finding.detail


def test_deep_json_is_one_finding(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('[' * 100_000)
    (finding,) = check_coco_file(str(path), CLASSES)
    assert 'recursion' in finding.detail
