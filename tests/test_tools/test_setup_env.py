import hashlib
import importlib.util
import subprocess
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


def test_sources_without_the_hash_of_the_lock_are_not_compiled(setup_env, tmp_path):
    (tmp_path / 'tiny').mkdir()
    (tmp_path / 'tiny' / 'setup.py').write_text(PRINT_STEPS)
    setup = [sys.executable, 'setup.py', '-q', 'sdist']
    subprocess.run(setup, cwd=tmp_path / 'tiny', check=True, timeout=600)
    (sdist,) = (tmp_path / 'tiny' / 'dist').iterdir()
    right = hashlib.sha256(sdist.read_bytes()).hexdigest()
    folder = tmp_path / 'cache' / 'tiny'
    entries = [f'tiny @ {sdist.as_uri()} \\\n    --hash=sha256:{"0" * 64}']
    with pytest.raises(SystemExit, match='DO NOT MATCH THE HASHES'):
        setup_env.build_wheel(Path(sys.executable), 'tiny', folder, entries)
    assert list(folder.parent.iterdir()) == []
    entries = [entries[0].replace('0' * 64, right)]
    setup_env.build_wheel(Path(sys.executable), 'tiny', folder, entries)
    assert [wheel.suffix for wheel in folder.iterdir()] == ['.whl']


def test_two_setups_may_compile_the_same_wheel(setup_env, monkeypatch, tmp_path):
    (tmp_path / 'tiny').mkdir()
    (tmp_path / 'tiny' / 'setup.py').write_text(PRINT_STEPS)
    folder = tmp_path / 'cache' / 'tiny'

    def meanwhile(message):
        folder.mkdir(exist_ok=True)
        (folder / 'first.whl').touch()

    monkeypatch.setattr(setup_env, 'say', meanwhile)
    setup_env.build_wheel(Path(sys.executable), str(tmp_path / 'tiny'), folder)
    assert [wheel.name for wheel in folder.iterdir()] == ['first.whl']
    assert list(folder.parent.iterdir()) == [folder]


def test_what_cannot_run_has_no_output(setup_env):
    assert setup_env.output_of(Path(sys.executable), 'print(6 * 7)') == '42'
    assert setup_env.output_of(Path(sys.executable), 'import no_such_module') is None


@pytest.mark.parametrize('extra', ['build', 'openmmlab', 'onedl', 'dev'])
def test_extras_are_read_without_a_parser(setup_env, extra):
    tomllib = pytest.importorskip('tomllib', reason='Python 3.10 has none')
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert setup_env.read_extra(extra) == project['optional-dependencies'][extra]


def test_unknown_extra(setup_env):
    with pytest.raises(SystemExit, match="no extra 'mmlab'"):
        setup_env.read_extra('mmlab')


class Recorder:
    """Stands in for pip and for the environment's Python; notes what is installed."""

    def __init__(self, module, monkeypatch, checkout):
        self.installed = []
        self.compiles = True
        self.kernels = checkout / 'pelk_mm' / 'ops' / 'cpu' / '_kernels.abi.so'
        self.kernels.parent.mkdir(parents=True)
        self.environment = checkout / 'env'
        (self.environment / 'bin').mkdir(parents=True)
        (self.environment / 'bin' / 'python').touch()
        (checkout / 'pelk_mm' / 'ops' / 'csrc' / 'x86').mkdir(parents=True)
        for name in ('pyproject.toml', 'setup.py', 'pelk_mm/ops/csrc/x86/kernel.cpp'):
            (checkout / name).touch()
        (checkout / 'pyproject.toml').write_text(
            'build = [\n    "ninja",\n]\nopenmmlab = [\n    "mmcv==2.1.0",\n]\n'
            'onedl = [\n    "onedl-mmcv==2.3.6",\n]\n'
        )
        monkeypatch.setattr(module, 'ROOT', checkout)
        monkeypatch.setattr(module, 'OPS', checkout / 'pelk_mm' / 'ops')
        monkeypatch.setattr(module, 'pip', self.pip)
        monkeypatch.setattr(module, 'output_of', lambda *_: 'torch2.13.0 .abi.so')
        monkeypatch.setattr(
            module, 'mmcv_wheel', lambda _, pin, tag, stack: f'{pin}-{tag}'
        )
        monkeypatch.setattr(module, 'LOCKS', checkout / 'requirements')
        self.from_locks = []
        self.module, self.monkeypatch = module, monkeypatch

    def pip(self, python, *arguments):
        self.installed.append(arguments)
        if '-r' in arguments:
            assert '--require-hashes' in arguments
            self.from_locks.append(Path(arguments[-1]).read_text().split('\n')[::2])
        if '-e' in arguments:
            # What pip takes an editable project from is the word after.
            project = arguments[arguments.index('-e') + 1]
            assert project.startswith(str(self.environment.parent))
        if '-e' in arguments and self.compiles:
            assert not self.kernels.exists()
            self.kernels.write_text('compiled')

    def run(self, *arguments):
        """Bring the environment up to date; what was installed, the last argument."""
        self.installed.clear()
        self.from_locks.clear()
        argv = ['setup_env.py', str(self.environment), *arguments]
        self.monkeypatch.setattr(sys, 'argv', argv)
        self.module.main()
        return [call[-1] for call in self.installed]


@pytest.fixture
def recorder(setup_env, monkeypatch, tmp_path):
    return Recorder(setup_env, monkeypatch, tmp_path)


def test_only_what_has_changed_is_installed(recorder, tmp_path, capsys):
    everything = ['ninja', 'mmcv==2.1.0-torch2.13.0', f'{tmp_path}[openmmlab,dev]']
    assert recorder.run() == everything
    assert recorder.run() == []

    for name in ('setup.py', 'pelk_mm/ops/csrc/x86/kernel.cpp'):
        (tmp_path / name).write_text('changed')
        assert recorder.run() == [str(tmp_path)]
        assert '--no-deps' in recorder.installed[0]
        assert recorder.run() == []
    (tmp_path / 'pelk_mm' / 'ops' / 'csrc' / 'new.h').touch()
    assert recorder.run() == [str(tmp_path)]

    recorder.kernels.write_text('from elsewhere')
    assert recorder.run() == [str(tmp_path)]
    recorder.kernels.unlink()
    assert recorder.run() == [str(tmp_path)]
    assert recorder.run() == []

    with (tmp_path / 'pyproject.toml').open('a') as file:
        file.write('# changed')
    assert recorder.run() == everything
    assert recorder.run('--torch', 'torch==2.6.0') == everything
    assert recorder.run('--torch', 'torch==2.6.0', '--stack', 'onedl') == [
        'ninja',
        'onedl-mmcv==2.3.6-torch2.13.0',
        f'{tmp_path}[onedl,dev]',
    ]
    assert 'no CPU kernels' not in capsys.readouterr().out


def test_kernels_that_do_not_compile_leave_no_old_ones(recorder, tmp_path, capsys):
    recorder.run()
    (tmp_path / 'setup.py').write_text('changed')
    recorder.compiles = False
    assert recorder.run() == [str(tmp_path)]
    assert not recorder.kernels.exists()
    assert 'setup: no CPU kernels' in capsys.readouterr().out
    assert recorder.run() == []  # a machine without a compiler does not try each time


def test_broken_torch_stops_the_setup(recorder, setup_env, monkeypatch):
    monkeypatch.setattr(setup_env, 'output_of', lambda *_: None)
    with pytest.raises(SystemExit, match='torch does not import; remove'):
        recorder.run()


def write_locks(checkout, **pins):
    (checkout / 'requirements').mkdir(exist_ok=True)
    for name, lines in pins.items():
        text = '# A comment.\n' + ''.join(
            f'{line} \\\n    --hash=sha256:{"a" * 64}\n' for line in lines
        )
        (checkout / 'requirements' / f'{name}.txt').write_text(text)


TORCH_LOCK = ['ninja==1.0', 'nvidia-nccl-cu13==2.0', 'torch==2.13.0', 'triton==3.0']


def test_lock_installs_nothing_without_a_hash(recorder, tmp_path, capsys):
    write_locks(tmp_path, torch=TORCH_LOCK, openmmlab=['mmcv==2.1.0', 'mmdet==3.3.0'])
    own = f'mmcv==2.1.0-torch{"2.13.0"}'
    installed = recorder.run('--torch', 'torch==2.13.0', '--lock')
    assert [name for name in installed if 'requirements.txt' not in name] == [
        own,
        str(tmp_path),
    ]
    assert recorder.from_locks == [
        [f'{name} \\' for name in TORCH_LOCK],
        ['mmdet==3.3.0 \\'],
    ]
    # All of it is pinned: pip is to look for nothing on its own.
    assert all('--no-deps' in call for call in recorder.installed[1:])
    assert 'without a hash' not in capsys.readouterr().out
    assert recorder.run('--torch', 'torch==2.13.0', '--lock') == []
    write_locks(tmp_path, openmmlab=['mmcv==2.1.0', 'mmdet==3.4.0'])
    assert len(recorder.run('--torch', 'torch==2.13.0', '--lock')) == 4
    assert len(recorder.run('--torch', 'torch==2.13.0')) == 3


def test_lock_and_a_torch_of_ones_own(recorder, tmp_path, capsys):
    write_locks(tmp_path, torch=TORCH_LOCK, openmmlab=['mmdet==3.3.0'])
    installed = recorder.run('--torch', 'torch==2.13.0+cpu', '--lock')
    assert installed[1] == 'torch==2.13.0+cpu'
    assert recorder.from_locks == [
        ['ninja==1.0 \\', 'triton==3.0 \\'],
        ['mmdet==3.3.0 \\'],
    ]
    assert 'torch==2.13.0+cpu is not the torch of the lock' in capsys.readouterr().out


def test_lock_without_a_hash_is_refused(recorder, tmp_path):
    with pytest.raises(SystemExit, match=r'torch.txt does not exist; `make lock`'):
        recorder.run('--lock')
    write_locks(tmp_path, torch=TORCH_LOCK, openmmlab=[])
    with (tmp_path / 'requirements' / 'torch.txt').open('a') as file:
        file.write('wheel==0.48.0\n')
    with pytest.raises(SystemExit, match=r"no hash for 'wheel==0.48.0'"):
        recorder.run('--lock')


@pytest.mark.parametrize('stack', ['openmmlab', 'onedl'])
def test_mmcv_is_compiled_from_locked_sources_alone(
    setup_env, monkeypatch, tmp_path, stack
):
    built = []
    monkeypatch.setattr(setup_env, 'CACHE', tmp_path)
    monkeypatch.setattr(setup_env, 'build_wheel', lambda *given: built.append(given))
    pin = next(name for name in setup_env.read_extra(stack) if 'mmcv==' in name)
    with pytest.raises(ValueError, match='not enough values'):  # nothing was built
        setup_env.mmcv_wheel(Path(sys.executable), pin, 'torch2.13.0', stack)
    ((_, _, _, entries),) = built
    assert [entry.split()[0] for entry in entries] == [pin]
    assert entries[0].count('--hash=sha256:') == 1  # the sources alone
    with pytest.raises(SystemExit, match='the lock has no mmcv==2.1'):
        setup_env.mmcv_wheel(Path(sys.executable), 'mmcv==2.1', 'torch2.13.0', stack)
