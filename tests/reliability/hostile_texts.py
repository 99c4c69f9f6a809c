"""Configs, annotations, images and logs from elsewhere, and who reads them."""

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pelk_mm.analysis.from_config import build_on_meta, image_shape
from pelk_mm.analysis.log_pictures import draw_runs
from pelk_mm.analysis.logs import (
    format_table,
    name_runs,
    read_run,
    require_keys,
    usual_keys,
)
from pelk_mm.analysis.open_backbone import find_backbone
from pelk_mm.analysis.receptive_field import Field
from pelk_mm.analysis.receptive_field_images import find_pictures
from pelk_mm.config_types import read_config
from pelk_mm.conversion.trained import build_model, load_config
from pelk_mm.engine import launch
from pelk_mm.engine.dataset_check import as_json, check_dataset, format_reports
from pelk_mm.inference.images import find_inputs, image_size, name_results, read_image
from pelk_mm.inference.models import _prepare, _require_framework
from pelk_mm.ops.tuning_file import TuningFile

from .hostile_readers import reader
from .hostile_tools import CONFIG
from .mutate_texts import (
    as_yaml,
    mutate_image,
    mutate_json,
    mutate_log,
    mutate_python,
)
from .watched import Call, Room

#: A detector's data set of one image.
COCO_CONFIG = """
default_scope = 'mmdet'
model = dict(type='MaskRCNN', roi_head=dict(bbox_head=dict(num_classes=2)))
train_dataloader = dict(dataset=dict(
    type='CocoDataset', data_root=r'{data}', ann_file='file.json',
    data_prefix=dict(img=''), metainfo=dict(classes=('a', 'b')),
    pipeline=[dict(type='LoadImageFromFile'),
              dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]))
"""

COCO = {
    'images': [
        {'id': n, 'file_name': f'{n}.png', 'height': 32, 'width': 32} for n in (1, 2)
    ],
    'categories': [{'id': 5, 'name': 'a'}, {'id': 6, 'name': 'b'}],
    'annotations': [
        {
            'id': n,
            'image_id': n,
            'category_id': 4 + n,
            'bbox': [1, 1, 20, 20],
            'area': 400,
            'iscrowd': n - 1,
            'segmentation': [[1, 1, 20, 1, 20, 20]]
            if n == 1
            else {'size': [32, 32], 'counts': [33, 500, 491]},
        }
        for n in (1, 2)
    ],
}

LOG = '\n'.join(
    [
        *(
            json.dumps(dict(lr=0.1, loss=1 / n, epoch=1 + n // 5, iter=n, step=n))
            for n in range(1, 9)
        ),
        json.dumps({'mIoU': 30.0, 'step': 8}),
        json.dumps(dict(mode='train', epoch=1, iter=5, loss=0.5)),
        json.dumps(dict(mode='val', epoch=1, iter=5, acc=0.5)),
    ]
)

#: The same values as JSON, which mmengine reads as a config too.
JSON_CONFIG = {
    'default_scope': 'mmseg',
    'model': {
        'type': 'EncoderDecoder',
        'data_preprocessor': {'type': 'SegDataPreProcessor', 'size': [32, 32]},
        'backbone': {
            'type': 'PeLK',
            'arch': {
                'channels': [4, 4, 4, 4],
                'depths': [1, 1, 1, 1],
                'kernel_sizes': [5, 5, 3, 3],
                'central_radius': 1,
            },
        },
        'decode_head': {
            'type': 'FCNHead',
            'in_channels': 4,
            'in_index': 3,
            'channels': 4,
            'num_convs': 1,
            'num_classes': 4,
        },
        'test_cfg': {'mode': 'whole'},
    },
    'test_dataloader': {
        'dataset': {'type': 'BaseSegDataset', 'pipeline': [{'type': 'Resize'}]}
    },
}


def sample_images() -> dict[str, bytes]:
    """Small images of each format that is read."""
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    return {
        suffix: cv2.imencode(suffix, pixels)[1].tobytes()
        for suffix in ('.png', '.jpg', '.bmp', '.webp', '.tif', '.ppm', '.jp2')
    }


class Texts:
    """Damaged configs, annotations, logs and images by number.

    Args:
        folder: Holds the undamaged data set of `make_data`.
    """

    kinds = ('python', 'json', 'yaml', 'coco', 'log', 'image', 'label', 'cache')

    def __init__(self, folder: Path) -> None:
        self.config = CONFIG.replace('{data}', str(folder))
        self.images = sample_images()
        self.label = (folder / 'labels' / '0.png').read_bytes()

    def kind(self, case: int) -> str:
        """What a case is."""
        return self.kinds[case % len(self.kinds)]

    def write(self, case: int, room: Room) -> Path:
        """Write a case into a room."""
        rng, kind = random.Random(case), self.kind(case)
        name, content = f'file.{kind}', b''
        if kind == 'python':
            name, content = 'config.py', mutate_python(rng, self.config)
        elif kind in ('json', 'yaml'):
            name = f'config.{kind}'
            content = mutate_json(rng, json.dumps(JSON_CONFIG))
            content = as_yaml(rng, content, room.marker) if kind == 'yaml' else content
        elif kind == 'coco':
            name, content = 'file.json', mutate_json(rng, json.dumps(COCO))
            for number in (1, 2):
                (room.input / f'{number}.png').write_bytes(self.images['.png'])
            (room.input / 'config.py').write_text(
                COCO_CONFIG.replace('{data}', str(room.input))
            )
        elif kind == 'log':
            name, content = 'scalars.json', mutate_log(rng, LOG)
        elif kind == 'cache':
            times = {'machine': {'problem': {'torch': 10.0, 'fft': 3}}}
            name, content = 'file.json', mutate_json(rng, json.dumps(times))
        else:
            suffix = rng.choice(list(self.images)) if kind == 'image' else '.png'
            content = self.images[suffix] if kind == 'image' else self.label
            content = mutate_image(rng, content)
            for part in ('images', 'labels'):
                (room.input / part).mkdir()
            (room.input / 'images' / '0.png').write_bytes(self.images['.png'])
            name = 'labels/0.png' if kind == 'label' else f'images/0{suffix}'
            (room.input / 'config.py').write_text(
                self.config.replace('.png', suffix if kind == 'image' else '.png')
            )
        path = room.input / name
        path.write_bytes(content)
        return path


def _hand_over(file: Path, out: Path) -> None:
    cfg = read_config(file)
    framework = launch.require_framework(cfg)
    for tool in ('train', 'test'):
        launch.find_tool(framework, tool)
        with contextlib.suppress(launch.LaunchError):
            launch.require_entries(cfg, tool)
            launch.require_data_roots(cfg, launch.LOADERS[tool])


def _inference(file: Path, out: Path) -> None:
    cfg = read_config(file)
    _prepare(cfg, _require_framework(cfg, file), file)


def _deploy(file: Path, out: Path) -> None:
    build_model(load_config(file))


def _count(file: Path, out: Path) -> None:
    cfg = read_config(file)
    build_on_meta(cfg)
    image_shape(cfg)


def _kernels(file: Path, out: Path) -> None:
    find_backbone(read_config(file))


def _check(config: Path, root: Path) -> None:
    options = {'train_dataloader.dataset.data_root': str(root)}
    reports = check_dataset(read_config(config, options), ['train'])
    print(format_reports(reports), json.dumps(as_json(reports))[:100])


def _logs(file: Path, out: Path) -> None:
    runs = [read_run(file)]
    keys = usual_keys(runs)
    require_keys(runs, keys)
    print(format_table(runs, name_runs(runs), keys))
    draw_runs(runs, name_runs(runs), keys, out / 'x.png')


def _image(file: Path, out: Path) -> None:
    root, files = find_inputs(str(file.parent))
    name_results(root, files, out)
    image_size(file)
    read_image(file)


def text_calls() -> dict[str, list[Call]]:
    """Calls by the kind of file that they read."""
    configs = [
        reader('train, test', _hand_over, ValueError),
        reader('image_demo, app', _inference, ValueError),
        reader('switch_to_deploy, export_onnx', _deploy, ValueError),
        reader('get_flops, benchmark', _count, ValueError),
        reader('visualize_kernels, visualize_erf', _kernels, ValueError),
        reader(
            'check_dataset', lambda file, out: _check(file, file.parent), ValueError
        ),
    ]
    data = reader(
        'check_dataset',
        lambda file, out: _check(_config_of(file), _config_of(file).parent),
        ValueError,
    )
    pictures = reader(
        'visualize_erf', lambda file, out: find_pictures(file.parent, 1), ValueError
    )
    return {
        'python': configs,
        'json': configs,
        'yaml': configs,
        'coco': [data],
        'log': [reader('plot_logs', _logs, ValueError)],
        'image': [data, pictures, reader('image_demo, app', _image, ValueError)],
        'label': [data],
        'cache': [
            reader('convolutions', lambda f, out: TuningFile(f).read('machine')),
            reader('visualize_erf', lambda f, out: Field.load(f)),
        ],
    }


def _config_of(file: Path) -> Path:
    folder = file.parent
    inside = (folder, folder.parent)
    return next(p / 'config.py' for p in inside if (p / 'config.py').exists())


def text_tasks(texts: Texts, cases: range) -> tuple[list[Call], list[tuple[int, int]]]:
    """All calls, and what is to be done: numbers of case and call."""
    by_kind: dict[str, list[Call]] = text_calls()
    calls: list[Any] = list(dict.fromkeys(c for each in by_kind.values() for c in each))
    tasks = [
        (case, calls.index(call))
        for case in cases
        for call in by_kind[texts.kind(case)]
    ]
    return calls, tasks
