"""PeLK, SLaK and RepLKNet backbones for MMSegmentation and MMDetection.

Importing the package registers everything in mmengine's root registries, where
mmseg, mmdet and mmpretrain find it, and has mmengine load checkpoints without executing
anything that they carry (see `pelk_mm.engine`).

`pelk_mm.ops` needs torch alone. Where mmengine or mmcv is missing nothing can be
registered, and whatever else is asked for raises an ImportError with the remedy.
"""

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .install import STACK, explain_missing_stack, is_missing_stack, missing_stack
from .version import __version__

__all__ = [
    '__version__',
    'backbones',
    'engine',
    'prepare_for_inference',
    'sparsity',
]

_missing = missing_stack()
if not _missing:
    from . import backbones, engine, sparsity
elif len(_missing) < len(STACK):
    # A config's custom_imports would otherwise end in an unknown type alone.
    warnings.warn(f'no backbone is registered: {explain_missing_stack()}', stacklevel=2)


#: Functions that most users look for here, and where they are.
_ELSEWHERE = {'prepare_for_inference': 'conversion.prepare'}


def __getattr__(name: str) -> Any:
    """Import a subpackage, or `prepare_for_inference`, on first use.

    Raises:
        ImportError: If it needs packages that are missing; the message names them.
        AttributeError: If there is no such subpackage.
    """
    if name in _ELSEWHERE:
        return getattr(__getattr__(_ELSEWHERE[name]), name)
    if find_spec(f'{__name__}.{name}') is None:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        return import_module(f'.{name}', __name__)
    except ModuleNotFoundError as error:
        if not is_missing_stack(error):
            raise
        raise ImportError(f'pelk_mm.{name}: {explain_missing_stack()}') from error
