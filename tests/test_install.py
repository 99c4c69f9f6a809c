import importlib.metadata
import re

import pytest

from pelk_mm import install
from pelk_mm.install import (
    PACKAGE,
    explain_missing_stack,
    install_command,
    is_missing_stack,
    requirements,
)

METADATA = [
    'torch>=2.6',
    'ninja; extra == "build"',
    'mmengine==0.10.7; extra == "openmmlab"',
    "setuptools<81; extra == 'openmmlab'",
    'onnx; extra == "export"',
]


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """Let the package look as if it came from a wheel with `METADATA`."""
    (tmp_path / '.mim').mkdir()
    monkeypatch.setattr(install, 'PACKAGE', tmp_path)
    monkeypatch.setattr(install, 'requires', lambda name: METADATA)
    return tmp_path


def test_extras_come_from_the_metadata(wheel):
    assert requirements('openmmlab') == ['mmengine==0.10.7', 'setuptools<81']
    with pytest.raises(ValueError, match="no extra 'mmlab'"):
        requirements('mmlab')


def test_command_of_a_wheel_names_packages(wheel):
    assert install_command() == (
        'pip install ninja && '
        "pip install --no-build-isolation mmengine==0.10.7 'setuptools<81'"
    )
    assert install_command('export') == 'pip install onnx'


def test_command_of_a_checkout_names_its_folder():
    root = re.escape(str(PACKAGE.parent))
    assert re.fullmatch(
        rf"pip install '{root}\[build\]' && "
        rf"pip install --no-build-isolation '{root}\[openmmlab\]'",
        install_command(),
    )


def test_every_extra_of_a_message_exists():
    stated = importlib.metadata.metadata('pelk_mm').get_all('Provides-Extra')
    assert {'build', 'openmmlab', 'onedl', 'export'} <= set(stated)


def test_missing_packages(monkeypatch):
    monkeypatch.setattr(
        install, 'find_spec', lambda name: None if name == 'mmcv' else name
    )
    assert explain_missing_stack().startswith('mmcv cannot be found')
    error = ModuleNotFoundError("No module named 'mmcv.cnn'", name='mmcv.cnn')
    assert is_missing_stack(error)
    # Of a package that is there a missing module is another fault.
    assert not is_missing_stack(ModuleNotFoundError(name='mmengine.gone'))
    assert not is_missing_stack(ModuleNotFoundError())
