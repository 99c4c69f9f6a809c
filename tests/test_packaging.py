"""What travels in the wheel, and the index that mm tools read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pelk_mm
from pelk_mm.version import __version__
from pelk_mm_cli import config_folder, config_path

ROOT = Path(__file__).resolve().parents[1]


def test_index_describes_every_config_once():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    models, collections = [], set()
    for name in index['Import']:
        metafile = yaml.safe_load((ROOT / name).read_text())
        collections |= {entry['Name'] for entry in metafile.get('Collections', [])}
        models += metafile['Models']
    assert collections == {'PeLK', 'SLaK', 'RepLKNet'}
    assert all(model['In Collection'] in collections for model in models)
    # Those that we have trained name the weights that have the figures.
    trained = [model for model in models if 'Weights' in model]
    models = [model for model in models if 'Weights' not in model]
    names = [model['Name'] for model in models]
    assert sorted(names) == sorted(p.stem for p in (ROOT / 'configs').glob('*.py'))
    for model in models:
        assert model['Config'] == f'configs/{model["Name"]}.py'
        for result in model.get('Results', []):
            assert all(metric.endswith(' (paper)') for metric in result['Metrics'])
    for model in trained:
        assert model['Config'] == f'configs/examples/{model["Name"]}.py'
        assert (ROOT / model['Config']).is_file()
        assert (ROOT / model['Weights']).is_file()
    kept = {(ROOT / model['Weights']).name for model in trained}
    assert {path.name for path in (ROOT / 'demo/weights').glob('*.pth')} == kept


#: Tools that set a checkout up or write its files.
CHECKOUT_TOOLS = (
    'tools/setup_env.py',
    'tools/supply_chain.py',
    'tools/analysis/metafiles.py',
)


@pytest.mark.long
def test_wheel_carries_configs_and_tools(tmp_path, monkeypatch):
    # What `pip wheel` runs, without compiling the kernels.
    monkeypatch.chdir(ROOT)
    code = 'import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path("setup.py")'
    command = ['setup.py', 'egg_info', '--egg-base', tmp_path]
    command += ['build_py', '--build-lib', tmp_path / 'lib']
    subprocess.run([sys.executable, '-c', code, *command], check=True, timeout=600)
    mim = tmp_path / 'lib' / 'pelk_mm' / '.mim'
    for folder, pattern in (('configs', '*.py'), ('configs', '*.yml'), ('tools', '*')):
        expected = {
            path.relative_to(ROOT)
            for path in (ROOT / folder).rglob(pattern)
            if path.is_file() and path.suffix in ('.py', '.sh', '.yml')
        } - set(map(Path, CHECKOUT_TOOLS))
        assert expected
        assert all((mim / path).read_bytes() == path.read_bytes() for path in expected)
    assert (mim / 'model-index.yml').is_file()
    assert (mim.parent / 'py.typed').is_file()
    assert not any((mim / path).exists() for path in CHECKOUT_TOOLS)
    assert not (ROOT / 'pelk_mm' / '.mim').exists()

    # Its commands work without the checkout; the metadata lie in `tmp_path`.
    config = mim / 'configs' / 'upernet_pelk_t_ade20k.py'
    code = (
        'import pelk_mm_cli\n'
        'from pelk_mm import install, version\n'
        'from importlib.metadata import version as installed\n'
        'assert installed("pelk_mm") == version.__version__\n'
        'print(install.install_command(), sorted(pelk_mm_cli.find_tools()))\n'
    )
    done = {}
    for name, arguments in {
        'code': ['-c', code],
        'config': ['-m', 'pelk_mm', 'config', config.stem],
        'train': ['-m', 'pelk_mm', 'train', config.stem],
        'convert': ['-m', 'pelk_mm', 'convert_checkpoint', '--help'],
    }.items():
        done[name] = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': f'{tmp_path / "lib"}:{tmp_path}'},
            timeout=600,
        )
    assert 'mmengine==0.10.7 mmcv==2.1.0 mmdet==3.3.0' in done['code'].stdout
    assert 'convert_checkpoint' in done['code'].stdout
    assert 'setup_env' not in done['code'].stdout
    assert done['config'].stdout == f'{config}\n'
    assert "data_root 'data/ade/ADEChallengeData2016'" in done['train'].stderr
    assert done['convert'].stdout.startswith('usage: pelk-mm convert_checkpoint ')


def test_folder_of_the_configs():
    assert config_folder() == ROOT / 'configs'
    path = ROOT / 'configs' / 'upernet_pelk_t_ade20k.py'
    assert config_path('upernet_pelk_t_ade20k') == path
    assert config_path('upernet_pelk_t_ade20k.py') == path


def test_unknown_config():
    with pytest.raises(FileNotFoundError, match="'vit'; choose one of cascade"):
        config_path('vit')
    with pytest.raises(FileNotFoundError, match='did you mean .*fcos_replknet_31b'):
        config_path('fcos_replknet_31b')


def test_printed_path(tmp_path):
    result = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'config.py', 'fcos_replknet_31b_coco'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
    )
    path = ROOT / 'configs' / 'fcos_replknet_31b_coco.py'
    assert result.stdout == f'{path}\n'


def test_one_version_everywhere():
    assert pelk_mm.__version__ == __version__
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == __version__
    released = f'## {__version__} ({citation["date-released"]})'
    assert released in (ROOT / 'CHANGELOG.md').read_text().splitlines()


def test_commits_are_formatted_as_the_tests_check():
    hooks = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
    (revision,) = (repo['rev'] for repo in hooks if 'ruff' in repo['repo'])
    pin = f'"ruff=={revision.removeprefix("v")}"'
    assert pin in (ROOT / 'pyproject.toml').read_text()
