import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def setup_env():
    spec = importlib.util.spec_from_file_location(
        'setup_env', ROOT / 'tools' / 'setup_env.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PRINT_STEPS = """
from setuptools import setup
for step in range(1, 21):
    print(f'[{step}/20] c++ -c file.cpp', flush=True)
setup(name='tiny', version='1.0', py_modules=[])
"""


def test_wheel_is_kept_and_progress_told(setup_env, tmp_path, capsys):
    (tmp_path / 'tiny').mkdir()
    (tmp_path / 'tiny' / 'setup.py').write_text(PRINT_STEPS)
    folder = tmp_path / 'cache' / 'tiny'
    setup_env.build_wheel(Path(sys.executable), str(tmp_path / 'tiny'), folder)
    assert [wheel.name.split('-')[0] for wheel in folder.iterdir()] == ['tiny']
    assert list(folder.parent.iterdir()) == [folder]
    told = capsys.readouterr().out
    assert 'tiny: 2 of 20 files' in told
    assert 'tiny: 20 of 20 files' in told


def test_failed_build_leaves_nothing(setup_env, tmp_path):
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'setup.py').write_text('raise SystemExit("no compiler")')
    folder = tmp_path / 'cache' / 'broken'
    with pytest.raises(SystemExit, match='no compiler[^$]*did not compile'):
        setup_env.build_wheel(Path(sys.executable), str(tmp_path / 'broken'), folder)
    assert list(folder.parent.iterdir()) == []


def test_what_cannot_run_has_no_output(setup_env):
    assert setup_env.output_of(Path(sys.executable), 'print(6 * 7)') == '42'
    assert setup_env.output_of(Path(sys.executable), 'import no_such_module') is None
