"""Every tool that reads files from elsewhere, as a call with one such file."""

import importlib
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch

from pelk_mm.checkpoints.files import read_checkpoint, write_checkpoint

from .watched import Call

ROOT = Path(__file__).resolve().parents[2]

#: A segmenter small enough to be trained in a moment, and its data beside it.
CONFIG = """
custom_imports = dict(imports=['pelk_mm'])
default_scope = 'mmseg'
norm_cfg = dict(type='BN', requires_grad=True)
data_preprocessor = dict(
    type='SegDataPreProcessor', mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True,
    pad_val=0, seg_pad_val=255, size=(32, 32))
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='PeLK', arch=dict(channels=[4, 4, 4, 4], depths=[1, 1, 1, 1],
        kernel_sizes=[5, 5, 3, 3], central_radius=1)),
    decode_head=dict(
        type='FCNHead', in_channels=4, in_index=3, channels=4, num_convs=1,
        concat_input=False, num_classes=4, norm_cfg=norm_cfg, dropout_ratio=0),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
dataset = dict(
    type='BaseSegDataset', data_root=r'{data}', img_suffix='.png',
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    metainfo=dict(classes=('a', 'b', 'c', 'd'), palette=[[9, 9, 9]] * 4),
    pipeline=[*load, dict(type='PackSegInputs')])
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler'), dataset=dataset)
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dataset)
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_cfg = dict(type='TestLoop')
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4))
param_scheduler = [dict(type='PolyLR', by_epoch=False, begin=0, end=4)]
log_processor = dict(by_epoch=False)
default_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=1),
    finite_loss=dict(type='FiniteLossHook'),
    iteration_seed=dict(type='IterationSeedHook'))
visualizer = dict(type='SegLocalVisualizer', name='hostile')
log_level = 'ERROR'
randomness = dict(seed=0)
"""


def make_data(folder: Path) -> Path:
    """Write a data set of two images, and the config that trains on it."""
    rng = np.random.default_rng(0)
    for name, depth in (('images', 3), ('labels', 1)):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            values = rng.integers(0, 255 if depth == 3 else 4, (32, 32, depth))
            path = folder / name / f'{number}.png'
            cv2.imwrite(str(path), values.astype(np.uint8))
    config = folder / 'config.py'
    config.write_text(CONFIG.replace('{data}', str(folder)))
    return config


def load_tool(name: str) -> ModuleType:
    """Import a script of ``tools`` under a name of its own."""
    spec = spec_from_file_location(
        f'hostile_{Path(name).stem}', ROOT / 'tools' / f'{name}.py'
    )
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(name: str, arguments: Callable[[Path, Path], Sequence[Any]]) -> Call:
    """A tool's command line as a call."""
    tool = load_tool(name)
    short = Path(name).stem

    def call(file: Path, out: Path) -> None:
        sys.argv = [short, *map(str, arguments(file, out))]
        # As `sys.exit(main())` at the end of the script does.
        if code := tool.main():
            raise SystemExit(code)

    return Call(short, call)


def hand_over(
    tool: str, arguments: Callable[[Path, Path], Sequence[Any]], name: str
) -> Call:
    """Training or testing, by the framework's own tool."""
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.runner import runner
    from mmengine.visualization import Visualizer

    launch = importlib.import_module('pelk_mm.engine.launch')

    def call(file: Path, out: Path) -> None:
        # What a new process has not.
        for kind in (MMLogger, MessageHub, Visualizer):
            kind._instance_dict.clear()
        # For its note of the versions mmengine asks gcc, git and others.
        runner.collect_env = dict
        runner.get_git_hash = lambda *_, **__: ''
        torch.manual_seed(0)
        sys.argv = [tool, *map(str, arguments(file, out))]
        launch.hand_over(tool)

    return Call(name, call)


def open_app(config: Path) -> Call:
    """What ``pelk-mm app`` does with a checkpoint before it serves a page."""
    from pelk_mm.checkpoints.files import CheckpointError
    from pelk_mm.config_types import ConfigError
    from pelk_mm.inference.models import InferenceError, open_model

    def call(file: Path, out: Path) -> None:
        try:
            open_model(config, file)
        except (InferenceError, ConfigError, CheckpointError) as error:
            raise SystemExit(str(error)) from error

    return Call('app', call)


def resume_folder(file: Path, out: Path) -> list[Any]:
    """Put a checkpoint where a training would resume from it."""
    out.joinpath('iter_1.pth').write_bytes(file.read_bytes())
    out.joinpath('last_checkpoint').write_text(str(out / 'iter_1.pth'))
    return ['--work-dir', out, '--resume']


def checkpoint_calls(config: Path, image: Path) -> list[Call]:
    """A call for each tool that reads a checkpoint."""
    return [
        command('convert_checkpoint', lambda f, out: [f, out / 'x.pth', '--no-strict']),
        command('switch_to_deploy', lambda f, out: [config, f, out / 'x.pth']),
        command(
            'export_onnx',
            lambda f, out: [config, f, out / 'x.onnx', '--shape', 32, 32],
        ),
        command('image_demo', lambda f, out: [image, config, f, '--out', out / 'o']),
        open_app(config),
        command(
            'analysis/benchmark',
            lambda f, out: [
                *(config, '--checkpoint', f, '--engines', 'eager', '--in-process'),
                *('--shape', 32, 32, '--against', '--iters', 1),
            ],
        ),
        command(
            'analysis/visualize_erf',
            lambda f, out: [
                *('--model', config, f, '--out', out / 'o', '--count', 1),
                *('--size', 32),
            ],
        ),
        command(
            'analysis/visualize_kernels',
            lambda f, out: [config, f, '--out', out / 'o', '--blocks', 1],
        ),
        command('analysis/sparsity_report', lambda f, out: [f, '--out', out / 'o.png']),
        hand_over(
            'train',
            lambda f, out: [
                *(config, '--work-dir', out, '--cfg-options', f'load_from={f}'),
            ],
            'train load_from',
        ),
        hand_over(
            'train', lambda f, out: [config, *resume_folder(f, out)], 'train --resume'
        ),
        hand_over(
            'train',
            lambda f, out: [
                *(config, '--work-dir', out, '--cfg-options'),
                'model.backbone.init_cfg.type=Pretrained',
                f'model.backbone.init_cfg.checkpoint={f}',
                'model.backbone.init_cfg.prefix=backbone.',
            ],
            'train init_cfg',
        ),
        hand_over('test', lambda f, out: [config, f, '--work-dir', out], 'test'),
    ]


def checkpoint_files(folder: Path) -> dict[str, Path]:
    """Where `make_checkpoints` writes, by name."""
    names = ('whole', 'legacy', 'weights', 'x.safetensors', 'x.pkl', 'x.npz', 'packed')
    endings = {'packed': '.npz', **dict.fromkeys(names[:3], '.pth')}
    full = [name + endings.get(name, '') for name in names]
    return {name: folder / f'base_{name}' for name in full}


def make_checkpoints(folder: Path, config: Path) -> None:
    """Write undamaged files of each format: a training's, its weights alone, arrays."""
    train = hand_over('train', lambda f, out: [config, '--work-dir', out], 'train')
    train.function(config, folder / 'trained')
    # The training's own file, of which nothing has to be refused.
    content = torch.load(folder / 'trained' / 'iter_1.pth', weights_only=False)
    # The same bytes in every run, so that the number of a case is enough to repeat it;
    # only torch's old format has addresses in it, and safetensors an order of its own.
    notes = dict(
        cfg=content['meta']['cfg'].replace(str(folder), ''), experiment_name='config'
    )
    content['meta'] |= notes | dict(time='20261130_000000')
    notes |= dict(last_ckpt='iter_1.pth', eta=np.float64(0.25))
    content['message_hub']['runtime_info'] |= notes
    for name in ('train/time', 'train/data_time'):
        content['message_hub']['log_scalars'].pop(name, None)
    weights = content['state_dict']
    meta = dict(dataset_meta=content['meta']['dataset_meta'])
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    files = checkpoint_files(folder)
    torch.save(content, files['whole.pth'])
    torch.save(content, files['legacy.pth'], _use_new_zipfile_serialization=False)
    torch.save(dict(meta=meta, state_dict=weights), files['weights.pth'])
    write_checkpoint(files['x.safetensors'], weights, meta)
    files['x.pkl'].write_bytes(pickle.dumps(dict(model=arrays), 2))
    np.savez(files['x.npz'], **arrays)
    np.savez_compressed(files['packed.npz'], **arrays)
    for path in files.values():
        read_checkpoint(path)


def quiet_environment() -> None:
    """What keeps the tools from counting this machine's processors or its history."""
    os.environ['XDG_CACHE_HOME'] = '/nonexistent'
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
