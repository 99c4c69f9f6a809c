"""What is wrong with a checkpoint file, as one sentence."""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CheckpointError(ValueError):
    """A file that cannot be converted; the message is a sentence that says why."""


def first_line(error: BaseException) -> str:
    """First line of an error's message, its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turn whatever reading a checkpoint raises into a `CheckpointError`.

    Args:
        path: The file; a `CheckpointError` of the block goes on from its name.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f'{path} {error}') from error
    except (ImportError, FileNotFoundError, PermissionError) as error:
        raise CheckpointError(str(error)) from error
    except Exception as error:  # whatever a parser raises at meaningless bytes
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):
            if 'could run code' in str(error):
                # What `load_weights_only` says has the file's name in it already.
                name = '' if str(path) in reason else f'{path} '
                raise CheckpointError(name + reason) from error
            asked = re.search(r'GLOBAL (\S+)', str(error))
            if asked:
                raise CheckpointError(
                    f'{path} asks for {asked[1]}, which could run code; where you '
                    'trust it, save it again without'
                ) from error
            # The reason follows a page of advice that would not help here.
            details = re.search(r'Unpickler error:\s*(.+)', str(error))
            reason = details[1] if details else 'its pickle is malformed'
        reason = ascii(reason[:200])[1:-1]
        raise CheckpointError(
            f'{path} is damaged or not a checkpoint ({reason}); download it again'
        ) from error
