"""Released checkpoints: how their parameter names become ours and back."""

from .rules import (
    Conversion,
    detect_family,
    families,
    from_released,
    rename,
    rules_for,
    to_released,
)

__all__ = [
    'Conversion',
    'detect_family',
    'families',
    'from_released',
    'rename',
    'rules_for',
    'to_released',
]
