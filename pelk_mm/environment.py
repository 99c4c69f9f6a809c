"""Switches of this package in the environment."""

import os


def read_switch(variable: str, effect: str) -> bool:
    """Read a variable that is 1 for on; 0, empty and unset are off.

    Args:
        variable: Its name.
        effect: What 1 does, for the message.

    Raises:
        ValueError: If it is set to anything else.
    """
    value = os.environ.get(variable) or '0'
    if value not in ('0', '1'):
        raise ValueError(f'{variable}={value} is neither 0 nor 1; 1 {effect}')
    return value == '1'
