import json
import re

import pytest

from coco_file import read_annotations, usable_objects
from overfit import largest_objects, summarize

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


@pytest.fixture
def overfit(run_tool):
    return lambda *arguments: run_tool('demo/overfit.py', *arguments)


def annotation(number=1, **changes):
    entry = dict(
        id=number,
        image_id=1,
        category_id=7,
        bbox=[10, 10, 20, 20],
        segmentation=SQUARE,
        area=400,
        iscrowd=0,
    )
    return {**entry, **changes}


def contents(*annotations, **changes):
    return {
        'images': [dict(id=1, file_name='1.jpg', width=64, height=48)],
        'annotations': list(annotations),
        'categories': [dict(id=7, name='balloon')],
        **changes,
    }


def without(entry, field):
    return {key: value for key, value in entry.items() if key != field}


def test_images_of_the_largest_objects_are_picked():
    areas = {1: [10, 30], 2: [100], 3: [25, 25]}
    objects = {i: [dict(area=a) for a in areas[i]] for i in areas}
    assert largest_objects(objects, 2) == [2, 3]
    with pytest.raises(ValueError, match='4 images cannot be picked: 3 have objects'):
        largest_objects(objects, 4)


@pytest.mark.parametrize('area', [None, 0, 0.0, -1, 'large'])
@pytest.mark.parametrize(
    ('mask', 'expected'),
    [
        (SQUARE, 400),
        ([*SQUARE, [50, 10, 54, 10, 54, 20, 50, 20]], 440),
        # Two points are no polygon; the other one counts.
        ([*SQUARE, [50, 10, 54, 10]], 400),
        (dict(size=[48, 64], counts=[100, 50, 1000, 25, 1897]), 75),
        (dict(size=[48, 64], counts='T3b0]1b0_O'), None),
    ],
)
def test_area_is_that_of_the_mask(mask, expected, area):
    if expected is None:  # the same mask, compressed
        from pycocotools import mask as coco

        plain = dict(size=[48, 64], counts=[100, 50, 2922])
        packed = coco.frPyObjects(plain, 48, 64)
        mask, expected = dict(packed, counts=packed['counts'].decode()), 50
    entry = annotation(segmentation=mask, area=area)
    for one in (entry, without(entry, 'area')):
        objects, left_out = usable_objects(contents(one))
        assert left_out == {}
        assert objects[1][0]['area'] == expected


def test_given_area_stays_and_a_missing_crowd_flag_is_added():
    objects, _ = usable_objects(contents(without(annotation(area=3.5), 'iscrowd')))
    assert objects == {1: [annotation(area=3.5, iscrowd=0)]}


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        (dict(iscrowd=1), 'crowd'),
        (dict(ignore=1), "marked 'ignore'"),
        (dict(bbox=[10, 10, 0.5, 20]), 'empty box'),
        (dict(bbox=[10, 10, 20, 0]), 'empty box'),
        (dict(bbox=[70, 10, 20, 20]), 'box outside its image'),
        (dict(bbox=[-30, 10, 20, 20]), 'box outside its image'),
        (dict(segmentation=[]), 'no mask'),
        (dict(segmentation=None), 'no mask'),
        (dict(segmentation=[[1, 2, 3, 4]]), 'no mask'),
        (dict(segmentation=[[9, 9, 9, 9, 9, 9]], area=0), 'empty mask'),
        (dict(segmentation=dict(counts=[3072], size=[64, 48])), 'RLE mask .*'),
        (dict(segmentation=dict(size=[48, 64])), 'RLE mask without counts .*'),
        (dict(image_id=2), 'image not in the file'),
        (dict(category_id=8), 'category not in the file'),
    ],
)
def test_why_an_object_is_left_out(changes, reason):
    objects, left_out = usable_objects(
        contents(annotation(), annotation(2, **changes), annotation(3, **changes))
    )
    assert [entry['id'] for entry in objects[1]] == [1]
    assert re.fullmatch(f'; left out: 2 {reason}', summarize(left_out))


def test_small_images_are_left_out():
    images = [dict(id=1, file_name='1.jpg', width=64, height=31)]
    objects, left_out = usable_objects(contents(annotation(), images=images))
    assert (objects, left_out) == ({}, {'image under 32 pixels': 1})
    assert summarize({}) == ''


@pytest.mark.parametrize(
    ('broken', 'message'),
    [
        (contents(without(annotation(5), 'bbox')), "annotation 5 has no 'bbox'"),
        (
            contents(without(annotation(5), 'segmentation')),
            "annotation 5 has no 'segmentation'",
        ),
        (
            contents(without(annotation(5), 'image_id')),
            "annotation 5 has no 'image_id'",
        ),
        (
            contents(annotation(), without(annotation(), 'id')),
            "annotation number 2 of the list has no 'id'",
        ),
        (contents(images=[dict(id=3, file_name='x')]), "image 3 has no 'width'"),
        (contents(categories=[dict(id=3)]), "category 3 has no 'name'"),
        (contents(annotation(), annotation()), '2 annotations have the id 1'),
        (
            contents(categories=[dict(id=i, name='kite') for i in (1, 2)]),
            "2 categories have the name 'kite'",
        ),
        (without(contents(), 'categories'), "has no list 'categories'"),
        ([annotation()], "has no list 'images'"),
        (contents(3), "entry 1 of 'annotations' is 3"),
        (
            contents(annotation(bbox=[1, 2, 3])),
            r'annotation 1 has the bbox \[1, 2, 3\]',
        ),
        (contents(annotation(bbox=None)), 'annotation 1 has the bbox None'),
    ],
)
def test_what_a_file_lacks_is_named(broken, message, tmp_path):
    path = tmp_path / 'file.json'
    path.write_text(json.dumps(broken))
    with pytest.raises(ValueError, match=f'file.json:? .*{message}'):
        read_annotations(path)


def test_no_json(tmp_path):
    (tmp_path / 'file.json').write_text('{')
    with pytest.raises(ValueError, match='file.json is no JSON'):
        read_annotations(tmp_path / 'file.json')


def write_data(folder, data):
    (folder / 'annotations').mkdir(parents=True)
    (folder / 'annotations/instances_train2017.json').write_text(json.dumps(data))


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (None, 'instances_train2017.json does not exist; name a folder'),
        (contents(without(annotation(5), 'bbox')), "annotation 5 has no 'bbox'"),
        (contents(annotation(iscrowd=1)), '4 images cannot be picked: 0 have objects'),
    ],
)
def test_bad_data_ends_in_one_line(data, message, overfit, tmp_path):
    if data is not None:
        write_data(tmp_path, data)
    result = overfit('--data', tmp_path, '--out', tmp_path / 'out')
    assert result.returncode == 1
    assert result.stderr.startswith('overfit.py: ')
    assert message in result.stderr
    assert result.stderr.count('\n') == 1


def test_missing_image_is_named(overfit, tmp_path):
    write_data(tmp_path, contents(annotation()))
    result = overfit('--data', tmp_path, '--images', '1')
    assert result.returncode == 1
    assert 'train2017/1.jpg does not exist; it is image 1 of ' in result.stderr
    assert result.stderr.count('\n') == 1


@pytest.mark.long
def test_two_iterations_with_the_files_own_categories(overfit, tmp_path, draw_objects):
    """Three categories, masks as polygons and RLE, no area, a crowd."""
    data = draw_objects(tmp_path / 'train2017', area=False)
    # The largest two images have no third category.
    write_data(tmp_path, data)
    result = overfit(
        '--data', tmp_path, '--out', 'out', '--images', '2', '--iters', '2'
    )
    assert result.returncode == 0, result.stderr
    first, second, *_, last = (
        line for line in result.stdout.splitlines() if ' - mmengine - ' not in line
    )
    assert first.endswith('6 objects of 3 categories in 3 images; left out: 1 crowd')
    assert second == 'Learning 4 objects of 2 categories in 2 images'
    assert last.startswith('2 images after ')
    assert 'segm_mAP_50' in last
