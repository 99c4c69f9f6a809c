import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from pelk_mm.engine.launch import (
    LaunchError,
    find_framework,
    find_tool,
    hand_over,
    is_config_name,
    require_data_roots,
)

ROOT = Path(__file__).resolve().parents[2]


def run_tool(tool, *arguments, cwd):
    return subprocess.run(
        [sys.executable, ROOT / 'tools' / f'{tool}.py', *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
    )


@pytest.mark.parametrize('framework', ['mmseg', 'mmdet'])
@pytest.mark.parametrize('tool', ['train', 'test'])
def test_installed_tools_are_found(framework, tool):
    path = find_tool(framework, tool)
    assert path.name == f'{tool}.py'
    assert framework in path.parts


def test_framework_of_a_config():
    assert find_framework(Config(dict(default_scope='mmdet'))) == 'mmdet'
    with pytest.raises(LaunchError, match="default_scope 'mmpose'; set it to 'mmseg'"):
        find_framework(Config(dict(default_scope='mmpose')))


def test_framework_that_is_not_installed(monkeypatch):
    monkeypatch.setattr('pelk_mm.engine.launch.find_spec', lambda _: None)
    for framework, package in (('mmdet', 'mmdet'), ('mmseg', 'mmsegmentation')):
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
    [('a/b.py', True), ('a.yaml', True), ('work.dir', False), ('x=b.py', False)],
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
        ('train', 'neither.py', 'default_scope None; set it to'),
        ('test', 'no_data.py', "data_root 'nowhere' of test_dataloader does not exist"),
    ],
)
def test_bad_config_ends_in_one_line(tmp_path, tool, config, message):
    (tmp_path / 'neither.py').write_text('model = dict(type="A")\n')
    (tmp_path / 'no_data.py').write_text(
        'default_scope = "mmseg"\n'
        'test_dataloader = dict(dataset=dict(data_root="nowhere"))\n'
    )
    result = run_tool(tool, '--work-dir', 'out', config, 'a.pth', cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_usage_is_the_frameworks_own(tmp_path):
    result = run_tool('train', '--help', cwd=tmp_path)
    assert result.returncode == 0
    assert '--amp' in result.stdout
    assert '--work-dir' in result.stdout


def test_checkpoint_that_does_not_fit_is_one_line(monkeypatch, tmp_path):
    """Not a traceback of mmengine's around it."""
    script = tmp_path / 'tool.py'
    script.write_text(
        'from pelk_mm.checkpoints.files import CheckpointError\n'
        "raise CheckpointError('it does not fit')\n"
    )
    monkeypatch.setattr('pelk_mm.engine.launch.find_tool', lambda *_: script)
    monkeypatch.setattr('sys.argv', ['train'])
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    with pytest.raises(SystemExit, match='^train: it does not fit$'):
        hand_over('train')
