"""Checkpoints as names and files: what they hold, and how names become ours and back.

Importing the package replaces mmengine's checkpoint loaders, see `loaders`.
"""

from . import loaders  # noqa: F401 - replaces mmengine's
from .loading import load_weights_only
from .rules import (
    Renamed,
    detect_family,
    families,
    from_released,
    rename,
    rules_for,
    to_released,
)

__all__ = [
    'Renamed',
    'detect_family',
    'families',
    'from_released',
    'load_weights_only',
    'rename',
    'rules_for',
    'to_released',
]
