import subprocess
import sys
from pathlib import Path

import pytest

from overfit import largest_objects

ROOT = Path(__file__).resolve().parents[2]


def overfit(folder, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / 'demo' / 'overfit.py', *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={'PATH': '/usr/bin:/bin', 'OMP_NUM_THREADS': '1'},
    )


def test_images_of_the_largest_objects_are_picked():
    areas = {1: [10, 30], 2: [100], 3: [25, 25], 4: []}
    annotations = dict(
        images=[dict(id=i) for i in areas],
        annotations=[
            dict(image_id=i, area=area, iscrowd=0) for i in areas for area in areas[i]
        ]
        + [dict(image_id=4, area=1000, iscrowd=1)],
        categories=['cat'],
    )
    picked = largest_objects(annotations, 2)
    assert [image['id'] for image in picked['images']] == [2, 3]
    assert [entry['area'] for entry in picked['annotations']] == [100, 25, 25]
    assert picked['categories'] == ['cat']
    with pytest.raises(ValueError, match='4 images cannot be picked: 3 have objects'):
        largest_objects(annotations, 4)


def test_missing_data_ends_in_one_line(tmp_path):
    result = overfit(tmp_path, '--data', tmp_path, '--out', tmp_path / 'out')
    assert result.returncode == 1
    assert result.stderr.startswith('overfit.py: ')
    assert result.stderr.count('\n') == 1


def test_two_iterations(shared, tmp_path):
    data = shared / 'data' / 'tiny_coco'
    result = overfit(
        tmp_path, '--data', data, '--out', 'out', '--images', '1', '--iters', '2'
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith('1 images after ')
    assert 'segm_mAP_50' in result.stdout
