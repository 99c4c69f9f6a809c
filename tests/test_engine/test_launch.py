import argparse
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config, DictAction

from pelk_mm.engine import launch
from pelk_mm.engine.launch import (
    LaunchError,
    find_tool,
    hand_over,
    is_config_name,
    require_data_roots,
    require_entries,
    require_framework,
    require_importable,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('framework', ['mmseg', 'mmdet'])
@pytest.mark.parametrize('tool', ['train', 'test'])
def test_installed_tools_are_found(framework, tool):
    path = find_tool(framework, tool)
    assert path.name == f'{tool}.py'
    assert framework in path.parts


def test_framework_of_a_config():
    assert require_framework(Config(dict(default_scope='mmdet'))) == 'mmdet'
    assert require_framework(Config(dict(default_scope='mmpretrain'))) == 'mmpretrain'
    named = Config(dict(model=dict(type='mmseg.EncoderDecoder')))
    assert require_framework(named) == 'mmseg'
    message = "default_scope 'mmpose' and no model .* set it to 'mmseg' or 'mmdet'"
    with pytest.raises(LaunchError, match=message):
        require_framework(Config(dict(default_scope='mmpose')))


def test_framework_that_cannot_be_imported(monkeypatch):
    def fail(cfg):
        raise ImportError('No module named torchvision\nmore')

    monkeypatch.setattr(launch, 'find_framework', fail)
    with pytest.raises(LaunchError, match='cannot be imported: No module named torchv'):
        require_framework(Config(dict(model=dict(type='A'))))


def test_what_a_run_cannot_do_without():
    entries = dict(model={}, train_dataloader={}, train_cfg={}, optim_wrapper={})
    require_entries(Config(entries), 'train')
    with pytest.raises(LaunchError, match='has no train_cfg, optim_wrapper, without'):
        require_entries(
            Config(entries | dict(train_cfg=None, optim_wrapper=None)), 'train'
        )
    with pytest.raises(LaunchError, match='has no test_dataloader, test_cfg, test_ev'):
        require_entries(Config(entries), 'test')


def test_framework_that_is_not_installed(monkeypatch):
    monkeypatch.setattr('pelk_mm.engine.launch.find_spec', lambda _: None)
    for framework, package in (
        ('mmdet', 'mmdet'),
        ('mmseg', 'mmsegmentation'),
        ('mmpretrain', 'mmpretrain'),
    ):
        message = f'{framework} is not installed; `pip install {package}`, or onedl-'
        with pytest.raises(LaunchError, match=message):
            find_tool(framework, 'train')


def test_framework_without_its_tools(monkeypatch, tmp_path):
    spec = SimpleNamespace(origin=str(tmp_path / 'mmseg' / '__init__.py'))
    monkeypatch.setattr('pelk_mm.engine.launch.find_spec', lambda _: spec)
    with pytest.raises(LaunchError, match=r'has no tools/test\.py; install mmsegm'):
        find_tool('mmseg', 'test')


@pytest.mark.parametrize(
    ('argument', 'expected'),
    [
        ('a/b.py', True),
        ('a.yaml', True),
        ('a.yml', True),
        ('a.json', True),
        ('work.dir', False),
        ('x=b.py', False),
    ],
)
def test_config_name(argument, expected):
    assert is_config_name(argument) is expected


def test_data_roots_are_found_inside_dataset_wrappers(tmp_path):
    cfg = Config(
        dict(
            train_dataloader=dict(
                dataset=dict(
                    type='RepeatDataset',
                    dataset=dict(
                        type='ConcatDataset',
                        datasets=[
                            dict(data_root=str(tmp_path)),
                            dict(data_root='s3://bucket/ade'),
                            dict(data_root=str(tmp_path / 'gone')),
                        ],
                    ),
                )
            )
        )
    )
    with pytest.raises(LaunchError, match=r'gone.*train_dataloader does not exist'):
        require_data_roots(cfg, ('train_dataloader', 'val_dataloader'))
    (tmp_path / 'gone').mkdir()
    require_data_roots(cfg, ('train_dataloader', 'val_dataloader'))


@pytest.mark.parametrize(
    ('tool', 'config', 'message'),
    [
        ('train', 'gone.py', 'config gone.py does not exist'),
        ('train', 'neither.py', 'default_scope None and no model of a framework'),
        ('train', 'broken.yml', 'config broken.yml cannot be read'),
        ('test', 'no_data.py', "data_root 'nowhere' of test_dataloader does not exist"),
    ],
)
def test_bad_config_ends_in_one_line(tmp_path, monkeypatch, tool, config, message):
    (tmp_path / 'neither.py').write_text('model = dict(type="A")\n')
    (tmp_path / 'broken.yml').write_text('model: [\n')
    (tmp_path / 'no_data.py').write_text(
        'default_scope = "mmseg"\n'
        'model = test_cfg = test_evaluator = dict()\n'
        'test_dataloader = dict(dataset=dict(data_root="nowhere"))\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [tool, '--work-dir', 'out', config, 'a.pth'])
    with pytest.raises(SystemExit) as end:
        launch.hand_over(tool)
    assert end.value.code.startswith(f'{tool}: ')
    assert message in end.value.code
    assert '\n' not in end.value.code
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('scope', 'added'),
    [
        ('', ['--cfg-options', 'default_scope=mmseg']),
        ('default_scope = "mmseg"\n', []),
        ('default_scope = None\n', []),
    ],
)
def test_scope_that_a_config_leaves_out(tmp_path, monkeypatch, scope, added):
    path = tmp_path / 'a.py'
    path.write_text(
        f'{scope}model = dict(type="mmseg.EncoderDecoder")\n'
        'train_dataloader = train_cfg = optim_wrapper = dict()\n'
    )
    started = []
    monkeypatch.setattr(launch, 'run_script', lambda *args: started.append(args))
    monkeypatch.setattr(sys, 'argv', ['train', str(path), '--amp'])
    launch.hand_over('train')
    assert started[0][1] == [str(path), '--amp', *added]


@pytest.fixture
def joined(monkeypatch):
    """Arguments with which a launch joins other processes; it does not here."""
    calls = []
    monkeypatch.setattr(
        launch.distributed,
        'init_process_group',
        lambda *args, **kwargs: calls.append((args, kwargs)),
    )
    return calls


def test_ranks_on_the_cpu_join_by_gloo(joined, tmp_path, monkeypatch):
    path = tmp_path / 'a.py'
    path.write_text(
        'default_scope = "mmseg"\n'
        'norm_cfg = dict(type="SyncBN")\n'
        'model = dict(backbone=dict(norm_cfg=norm_cfg), heads=[dict(norm=norm_cfg)])\n'
        'train_dataloader = train_cfg = optim_wrapper = dict()\n'
        'env_cfg = dict(dist_cfg=dict(backend="nccl", timeout=90))\n'
    )
    started = []
    monkeypatch.setattr(launch, 'run_script', lambda *args: started.append(args[1]))
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    for launcher in ('pytorch', 'none'):
        monkeypatch.setattr(sys, 'argv', ['train', str(path), '--launcher', launcher])
        launch.hand_over('train')
    assert joined == [(('gloo',), dict(timeout=timedelta(seconds=90)))]
    with_ranks, alone = started
    assert with_ranks[:4] == [str(path), '--launcher', 'pytorch', '--cfg-options']
    assert alone == [str(path), '--launcher', 'none']
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(read_settings(with_ranks[4:]))
    assert cfg.model.backbone.norm_cfg.type == cfg.model.heads[0].norm.type == 'BN'
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=False,
    )
    monkeypatch.setattr(launch, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(sys, 'argv', ['train', str(path), '--launcher', 'pytorch'])
    launch.hand_over('train')
    assert len(joined) == 1
    assert started[2] == [str(path), '--launcher', 'pytorch']


def test_ranks_on_the_cpu_keep_a_wrapper_of_the_config(joined):
    wrapper = dict(type='MMSeparateDistributedDataParallel')
    cfg = Config(dict(model={}, model_wrapper_cfg=wrapper))
    assert launch.join_cpu_ranks(cfg) == ['model_wrapper_cfg.device_ids=None']
    cfg = Config(dict(model={}, find_unused_parameters=True))
    wanted = 'model_wrapper_cfg.find_unused_parameters=True'
    assert wanted in launch.join_cpu_ranks(cfg)
    assert joined == [(('gloo',), dict(timeout=None))] * 2


def read_settings(values):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args(['--cfg-options', *values]).cfg_options


NEW_STYLE = """
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, TestLoop
from mmseg.datasets import CityscapesDataset, LoadAnnotations, PackSegInputs
from mmcv.transforms import LoadImageFromFile
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder, FCNHead, SegDataPreProcessor
from torch.optim import SGD
from mmengine.config import read_base
from pelk_mm.backbones import SLaK

with read_base():
    from .runtime import *

model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(type=SegDataPreProcessor, size=(128, 256)),
    backbone=dict(
        type=SLaK,
        arch=dict(channels=[8], depths=[1], kernel_sizes=[13]),
        out_indices=[0],
    ),
    decode_head=dict(
        type=FCNHead, in_channels=8, in_index=0, channels=8, num_classes=19
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
dataset = dict(
    type=CityscapesDataset,
    data_root={root!r},
    data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
    pipeline=[
        dict(type=LoadImageFromFile),
        dict(type=LoadAnnotations),
        dict(type=PackSegInputs),
    ],
)
loading = dict(batch_size=2, num_workers=0, dataset=dataset)
train_dataloader = dict(**loading, sampler=dict(type=InfiniteSampler))
test_dataloader = dict(**loading, sampler=dict(type=DefaultSampler, shuffle=False))
train_cfg = dict(type=IterBasedTrainLoop, max_iters=2)
test_cfg = dict(type=TestLoop)
test_evaluator = dict(type=IoUMetric)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01))
"""


@pytest.fixture
def new_style(tmp_path, street):
    """A config of classes over another one, without default_scope."""
    pytest.importorskip('mmseg')
    (tmp_path / 'runtime.py').write_text(
        'from mmengine.hooks import CheckpointHook\n'
        'default_hooks = dict(\n'
        '    checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=2)\n'
        ')\n'
    )
    (tmp_path / 'new_style.py').write_text(NEW_STYLE.format(root=str(street)))
    return tmp_path / 'new_style.py'


def test_config_of_classes_trains_and_is_tested(new_style, run_tool, tmp_path):
    for tool, arguments in (('train', ()), ('test', ('out/iter_2.pth',))):
        command = (new_style, *arguments, '--work-dir', 'out')
        result = run_tool(f'tools/{tool}.py', *command)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / 'out' / 'iter_2.pth').is_file()
    assert 'mIoU' in result.stdout + result.stderr


def test_usage_is_the_frameworks_own(run_tool):
    result = run_tool('tools/train.py', '--help')
    assert result.returncode == 0
    assert '--amp' in result.stdout
    assert '--work-dir' in result.stdout


@pytest.mark.parametrize(
    'error',
    [
        'pelk_mm.checkpoints.files.CheckpointError',
        'pelk_mm.engine.data_check.DataCheckError',
        'pelk_mm.engine.finite_loss.NotFiniteError',
    ],
)
def test_what_does_not_fit_is_one_line(error, monkeypatch, tmp_path):
    """Not a traceback of mmengine's around it."""
    module, _, name = error.rpartition('.')
    script = tmp_path / 'tool.py'
    script.write_text(f"from {module} import {name}\nraise {name}('it does not fit')\n")
    monkeypatch.setattr('pelk_mm.engine.launch.find_tool', lambda *_: script)
    monkeypatch.setattr('sys.argv', ['train'])
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    with pytest.raises(SystemExit, match='^train: it does not fit$'):
        hand_over('train')


@pytest.mark.parametrize(
    ('raised', 'ends'),
    [
        ("OSError(28, 'No space left on device', 'out/vis_data/scalars.json')", True),
        ("OSError(122, 'Disk quota exceeded')", True),
        ("OSError(27, 'File too large', 'a.log')", True),
        ("OSError(2, 'No such file or directory', 'a.jpg')", False),
    ],
)
def test_a_full_disk_is_one_line(raised, ends, monkeypatch, tmp_path):
    """Wherever it shows first: mmengine's log is written more often than weights."""
    script = tmp_path / 'tool.py'
    script.write_text(f'raise {raised}\n')
    monkeypatch.setattr('pelk_mm.engine.launch.find_tool', lambda *_: script)
    monkeypatch.setattr('sys.argv', ['train'])
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    match = r'^train: no space is left.*; free some, then go on with --resume: [^\n]*$'
    with pytest.raises(
        SystemExit if ends else OSError, match=match if ends else 'such'
    ):
        hand_over('train')


@pytest.mark.parametrize(
    'error',
    [
        ModuleNotFoundError("No module named 'torchvision'"),
        RuntimeError('operator torchvision::nms does not exist'),
        TypeError('NoneType takes no arguments'),
    ],
)
def test_mmpretrain_that_cannot_be_imported(error, monkeypatch):
    """Without torchvision, with another torch's, and next to transformers."""

    def fail(name):
        assert name == 'mmpretrain.models'
        raise error

    monkeypatch.setattr(launch, 'import_module', fail)
    monkeypatch.setattr(launch.torch, '__version__', '2.13.0+cpu')
    require_importable('mmseg')
    with pytest.raises(LaunchError, match='cannot be imported') as raised:
        require_importable('mmpretrain')
    message = str(raised.value)
    assert str(error) in message
    assert '`pip install torchvision==0.28.*`' in message
    assert '`pip uninstall transformers`' in message
