"""PeLK, SLaK and RepLKNet backbones for MMSegmentation and MMDetection.

Importing the package registers everything in mmengine's root registries, where
mmseg, mmdet and mmpretrain find it.
"""

from importlib.util import find_spec

__version__ = '0.1.0'

_missing = [name for name in ('mmengine', 'mmcv') if find_spec(name) is None]
if _missing:
    raise ImportError(
        f'pelk_mm needs {" and ".join(_missing)}: run `pip install "setuptools<81" '
        'wheel ninja psutil && pip install --no-build-isolation "pelk_mm[openmmlab]"`, '
        'or the same with [onedl] for the maintained forks'
    )

from . import backbones, engine, sparsity  # noqa: E402

__all__ = ['__version__', 'backbones', 'engine', 'sparsity']
