"""What travels in the wheel, and the index that mm tools read."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pelk_mm.configs import config_folder, config_path

ROOT = Path(__file__).resolve().parents[1]


def test_index_describes_every_config_once():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    models, collections = [], set()
    for name in index['Import']:
        metafile = yaml.safe_load((ROOT / name).read_text())
        collections |= {entry['Name'] for entry in metafile['Collections']}
        models += metafile['Models']
    assert collections == {'PeLK', 'SLaK', 'RepLKNet'}
    names = [model['Name'] for model in models]
    assert sorted(names) == sorted(p.stem for p in (ROOT / 'configs').glob('*.py'))
    for model in models:
        assert model['Config'] == f'configs/{model["Name"]}.py'
        assert model['In Collection'] in collections
        for result in model.get('Results', []):
            assert all(metric.endswith(' (paper)') for metric in result['Metrics'])


def test_wheel_carries_configs_and_tools(tmp_path, monkeypatch):
    # What `pip wheel` runs, without compiling the kernels.
    monkeypatch.chdir(ROOT)
    code = 'import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path("setup.py")'
    command = ['setup.py', 'egg_info', '--egg-base', tmp_path]
    command += ['build_py', '--build-lib', tmp_path / 'lib']
    subprocess.run([sys.executable, '-c', code, *command], check=True, timeout=120)
    mim = tmp_path / 'lib' / 'pelk_mm' / '.mim'
    for folder, pattern in (('configs', '*.py'), ('configs', '*.yml'), ('tools', '*')):
        expected = {
            path.relative_to(ROOT)
            for path in (ROOT / folder).rglob(pattern)
            if path.is_file() and path.suffix in ('.py', '.sh', '.yml')
        } - {Path('tools/setup_env.py')}
        assert expected
        assert all((mim / path).read_bytes() == path.read_bytes() for path in expected)
    assert (mim / 'model-index.yml').is_file()
    # It needs the checkout's setup.py.
    assert not (mim / 'tools' / 'setup_env.py').exists()
    assert not (ROOT / 'pelk_mm' / '.mim').exists()


def test_folder_of_the_configs():
    assert config_folder() == ROOT / 'configs'
    path = ROOT / 'configs' / 'upernet_pelk_t_ade20k.py'
    assert config_path('upernet_pelk_t_ade20k') == path
    assert config_path('upernet_pelk_t_ade20k.py') == path


def test_unknown_config():
    with pytest.raises(FileNotFoundError, match="'resnet'; choose one of cascade"):
        config_path('resnet')


def test_printed_path(tmp_path):
    result = subprocess.run(
        [sys.executable, '-m', 'pelk_mm.configs', 'fcos_replknet_31b_coco'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    path = ROOT / 'configs' / 'fcos_replknet_31b_coco.py'
    assert result.stdout == f'{path}\n'
