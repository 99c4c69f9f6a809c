"""Types of command line arguments."""

import argparse
from collections.abc import Callable


def number_in(least: int, most: int) -> Callable[[str], int]:
    """Make an argument type: a whole number in a range."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f'{text!r} is not a whole number from {least} to {most}'
            )
        return number

    return parse
