"""Fixtures that several test files use."""

import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from hypothesis import settings
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import pelk_mm  # noqa: F401 - registers the backbones
from pelk_mm.ops.linear import LIBRARIES
from pelk_mm_cli import run_script

# The same examples in every run: a suite that passed passes again.
settings.register_profile('repeatable', derandomize=True, database=None, deadline=None)
settings.load_profile('repeatable')

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared'


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch):
    """Each library that can multiply, forced."""
    monkeypatch.setenv('PELK_MM_LINEAR', request.param)
    return request.param


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN, forced."""
    monkeypatch.setenv('PELK_MM_LINEAR', 'onednn')


@pytest.fixture(scope='module')
def one_thread():
    """Small models are faster on one thread, and gradients the same from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def open_sizes():
    """Options of `torch.export.export` with which our models leave sizes open."""
    # Here: only tests of exports wait for what exporting imports.
    from pelk_mm.conversion.onnx_export import DEFERRED, can_leave_sizes_open

    if not can_leave_sizes_open():
        pytest.skip(f'the tracers of PyTorch {torch.__version__} are too old for this')
    return {DEFERRED: True}


class Finished(NamedTuple):
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_command(capsys, monkeypatch, tmp_path):
    """Calls what a command starts, in a folder that is not the checkout's.

    It runs in this process, for another one would import the frameworks anew, which
    takes longer than most tools.
    """

    def run(main, name, *arguments):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, 'argv', [name, *map(str, arguments)])
            patch.setattr(sys, 'path', [*sys.path])
            patch.setitem(sys.modules, '__main__', sys.modules['__main__'])
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code or 0
        out, err = capsys.readouterr()
        if isinstance(code, str):  # what sys.exit prints
            code, err = 1, f'{err}{code}\n'
        return Finished(code, out, err)

    return run


@pytest.fixture
def run_tool(run_command):
    """Runs a script of the checkout, such as ``tools/train.py``, with arguments."""

    def run(script, *arguments):
        path = ROOT / script

        def main():
            sys.path.insert(0, str(path.parent))
            run_script(path, sys.argv[1:], sys.argv[0])

        return run_command(main, path.name, *arguments)

    return run


@pytest.fixture(scope='session')
def shared():
    """Folder of real data and of tensors from the released implementations."""
    if not SHARED.is_dir():
        pytest.skip(f'no reference data: {SHARED} does not exist')
    return SHARED


@pytest.fixture(scope='session')
def randomise():
    """Function that draws a module's norms and scales at random, as training would."""

    @torch.no_grad()
    def draw(module):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 1.5)
            if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm)):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.2)
        for name, parameter in module.named_parameters():
            if name.endswith('gamma'):
                parameter.uniform_(0.1, 1)
        return module

    return draw


@pytest.fixture(scope='session')
def draw_objects():
    """Function that draws three images of squares and returns a COCO file of them."""

    def mask_of(x, y, side, height, width):
        """As a polygon, and for the first square of an image as runs of RLE."""
        if x > 5:
            return [[x, y, x + side, y, x + side, y + side, x, y + side]]
        mask = np.zeros((height, width), np.uint8)
        mask[y : y + side, x : x + side] = 1
        pixels = mask.T.ravel()  # column by column
        changes = np.flatnonzero(np.diff(pixels)) + 1
        return dict(
            size=[height, width],
            counts=np.diff([0, *changes, pixels.size]).tolist(),
        )

    def draw(folder, area=True):
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        images, annotations = [], []
        for i, (height, width) in enumerate([(120, 160), (96, 128), (96, 112)]):
            images.append(dict(id=i, file_name=f'{i}.jpg', height=height, width=width))
            image = rng.integers(0, 99, (height, width, 3), dtype=np.uint8)
            side = 40 - 10 * i  # smaller from image to image
            for k, (x, y) in enumerate([(5, 10), (70, 20)]):
                image[y : y + side, x : x + side] = 200
                annotations.append(
                    dict(
                        id=2 * i + k,
                        image_id=i,
                        # Only the last image has the third category.
                        category_id=[[10, 20], [10, 20], [30, 30]][i][k],
                        bbox=[x, y, side, side],
                        segmentation=mask_of(x, y, side, height, width),
                        iscrowd=0,
                    )
                )
                if area:
                    annotations[-1]['area'] = side**2
            cv2.imwrite(str(folder / f'{i}.jpg'), image)
        annotations.append({**annotations[0], 'id': 99, 'iscrowd': 1})
        names = {10: 'balloon', 20: 'kite', 30: 'drone'}
        return dict(
            images=images,
            annotations=annotations,
            categories=[dict(id=number, name=name) for number, name in names.items()],
        )

    return draw


@pytest.fixture(scope='session')
def street(tmp_path_factory):
    """One made-up image and its ground truth in Cityscapes' directory layout."""
    root = tmp_path_factory.mktemp('cityscapes')
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for kind, suffix, values in (
            ('leftImg8bit', 'leftImg8bit', rng.integers(0, 255, (128, 256, 3))),
            ('gtFine', 'gtFine_labelTrainIds', rng.integers(0, 19, (128, 256))),
        ):
            folder = root / kind / split / 'town'
            folder.mkdir(parents=True)
            for i in range(2):
                cv2.imwrite(
                    str(folder / f'town_{i}_{suffix}.png'), values.astype(np.uint8)
                )
    return root


#: Settings that make a detector's heads and samples small, by key.
SMALL = dict(
    out_channels=32,  # FCOS's GroupNorm has 32 groups
    feat_channels=32,
    conv_out_channels=16,
    fc_out_channels=32,
    stacked_convs=1,
    num_shared_convs=1,
    num_convs=1,
    nms_pre=50,
    max_per_img=8,
    num=32,
    score_thr=0.0,
)


def shrink(node):
    """Put the values of `SMALL` wherever their keys are, at any depth."""
    for key, value in node.items():
        if key in SMALL:
            node[key] = SMALL[key]
        elif key == 'in_channels' and value == 256:
            node[key] = SMALL['out_channels']
        elif isinstance(value, dict):
            shrink(value)
        elif isinstance(value, (list, tuple)):
            for entry in value:
                if isinstance(entry, dict):
                    shrink(entry)


def narrowed(cfg, name, work_dir):
    """The config for two training iterations of a narrow model on small images."""
    channels = [8, 12, 16, 24]
    backbone = cfg.model.backbone
    backbone.arch = dict(
        channels=channels, depths=[1, 1, 1, 1], kernel_sizes=[13, 11, 9, 7]
    )
    if backbone.type == 'PeLK':
        backbone.arch.central_radius = 2
    if cfg.default_scope == 'mmseg':
        crop = (64, 64)
        cfg.model.data_preprocessor.size = crop
        cfg.model.test_cfg.update(crop_size=crop, stride=(43, 43))
        cfg.model.decode_head.update(in_channels=channels, channels=16)
        cfg.model.auxiliary_head.update(in_channels=channels[2], channels=8)
        scale = (128, 64)
        for step in cfg.train_dataloader.dataset.pipeline:
            if step['type'] == 'RandomCrop':
                step.crop_size = crop
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    else:
        shrink(cfg.model)
        cfg.model.neck.in_channels = channels
        scale = (160, 96)
        cfg.train_dataloader.dataset.indices = 4
        cfg.val_dataloader.dataset.indices = 1
        cfg.train_cfg.max_epochs = 1

    def rescale(steps):
        for step in steps:
            if isinstance(step, list):
                rescale(step)
            elif step['type'] == 'RandomChoice':
                rescale(step.transforms)
            elif step['type'] == 'RandomChoiceResize':
                step.scales = [scale]
            elif step['type'] == 'RandomResize':
                step.scale = [scale] * len(step.scale)
                step.ratio_range = None
            elif step['type'] == 'Resize':
                step.scale = scale
            elif step.get('crop_type') == 'absolute_range':
                step.crop_size = (48, 72)

    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        rescale(loader.dataset.pipeline)
    # Schedules that end beyond the run are as the config has them.
    cfg.default_hooks.logger.interval = 1
    cfg.visualizer.name = cfg.experiment_name = name
    cfg.work_dir = str(work_dir)
    cfg.log_level = 'ERROR'
    cfg.randomness = dict(seed=0)
    return cfg


@pytest.fixture(scope='session')
def narrow():
    """Function that makes a config train a narrow model: config, name, folder."""
    return narrowed


#: A segmenter of four classes, small enough to predict in milliseconds.
SEGMENTER_CONFIG = """
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[120.0] * 3, std=[60.0] * 3,
        bgr_to_rgb=True, size=(64, 64)),
    backbone=dict(
        type='PeLK',
        arch=dict(channels=[8, 12, 16, 24], depths=[1, 1, 1, 1],
                  kernel_sizes=[13, 11, 9, 7], central_radius=2)),
    decode_head=dict(
        type='FCNHead', in_channels=24, in_index=3, channels=8, num_convs=1,
        concat_input=False, num_classes=4, norm_cfg=norm_cfg),
    test_cfg=dict(mode='whole'))
test_dataloader = dict(dataset=dict(
    type='BaseSegDataset', data_root='nowhere',
    metainfo=dict(classes=('a', 'b', 'c', 'd')),
    pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
              dict(type='PackSegInputs')]))
"""


@pytest.fixture(scope='session')
def segmenter_files(tmp_path_factory):
    """Folder of a segmenter's config, its checkpoints and an image.

    ``segmenter.py``; ``segmenter.pth`` with class names and colours, ``nameless.pth``
    without; ``image.png`` of 96 x 64 pixels, in which it finds several classes.
    """
    folder = tmp_path_factory.mktemp('segmenter')
    (folder / 'segmenter.py').write_text(SEGMENTER_CONFIG)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(Config.fromfile(folder / 'segmenter.py').model)
    with torch.no_grad():
        model.decode_head.conv_seg.weight.mul_(60)
    weights = model.state_dict()
    names = ('ground', 'sky', 'tree & <b>bush</b>', 'boat')
    palette = [(120, 90, 40), (90, 150, 230), (40, 140, 60), (200, 60, 50)]
    meta = dict(dataset_meta=dict(classes=names, palette=palette))
    torch.save(dict(meta=meta, state_dict=weights), folder / 'segmenter.pth')
    torch.save(dict(state_dict=weights), folder / 'nameless.pth')
    grid = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = cv2.resize(grid, (96, 64), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / 'image.png'), image)
    return folder
