"""The file that remembers measured times from one process to the next."""

import contextlib
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Nanoseconds by candidate.
Times = dict[str, float]

#: What the file keeps, of the latest: machines, and problems of each.
MAX_MACHINES, MAX_PROBLEMS = 16, 4096
#: Seconds to wait for another process that writes.
_PATIENCE = 1.0


def cache_folder() -> Path:
    """This package's folder among the user's caches, which need not exist.

    Raises:
        RuntimeError: The user has no home.
    """
    given = os.environ.get('XDG_CACHE_HOME')
    if not given and sys.platform == 'win32':
        given = os.environ.get('LOCALAPPDATA')
    if given and Path(given).is_absolute():  # others are to be ignored, by XDG
        return Path(given) / 'pelk_mm'
    if sys.platform == 'darwin':
        return Path.home() / 'Library' / 'Caches' / 'pelk_mm'
    return Path.home() / '.cache' / 'pelk_mm'


class TuningFile:
    """Times by machine, problem and candidate, as JSON.

    Trouble with the file is told once, and then does without it.

    Args:
        path: Where it is; None for its place in `cache_folder`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._told = False

    def read(self, machine: str) -> dict[str, Times]:
        """Times of a machine by problem; none where there is no file yet."""
        try:
            return self._load(self._place()).get(machine, {})
        except (OSError, RuntimeError) as error:
            self._tell_of_folder(error)
            return {}

    def add(self, machine: str, times: Mapping[str, Times]) -> None:
        """Add times of a machine to those that are there by now."""
        try:
            path = self._place()
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix('.lock')):
                machines = self._load(path)
                # What is new comes last, and what is old is dropped first.
                own = {**machines.pop(machine, {}), **times}
                machines[machine] = _latest(own, MAX_PROBLEMS)
                with write_atomically(path) as temporary:
                    temporary.write_text(
                        json.dumps(_latest(machines, MAX_MACHINES), indent=1)
                    )
        except (OSError, RuntimeError) as error:
            self._tell_of_folder(error)

    def _place(self) -> Path:
        return self._path or cache_folder() / 'convolutions.json'

    def _load(self, path: Path) -> dict[str, dict[str, Times]]:
        """All of the file; nothing where it is not what this class writes."""
        try:
            found = json.loads(path.read_text(encoding='utf-8'))
            _require_times(found)
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            self._tell(
                f'{path} does not hold measured times ({error}); it is ignored, and '
                'replaced as soon as times are measured'
            )
            return {}
        return found

    def _tell_of_folder(self, error: Exception) -> None:
        self._tell(
            f'measured times cannot be kept ({error}) and are taken anew in every '
            'process; set XDG_CACHE_HOME to a folder that can be read and written'
        )

    def _tell(self, text: str) -> None:
        if not self._told:
            self._told = True
            warnings.warn(f'pelk_mm: {text}', RuntimeWarning, stacklevel=3)


def _require_times(found: Any) -> None:
    """Refuse what is no mapping of machines to problems to candidates to times.

    Raises:
        ValueError: It is something else.
    """
    levels = [found]
    for _ in ('machines', 'problems', 'candidates'):
        if not all(isinstance(level, dict) for level in levels):
            raise ValueError('its parts are not JSON objects')
        levels = [value for level in levels for value in level.values()]
    for value in levels:
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise ValueError(f'{value!r} is no time')


def _latest(entries: dict[str, Any], count: int) -> dict[str, Any]:
    return dict(list(entries.items())[-count:])


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for other processes, as long as that is worth while.

    Where files cannot be locked two processes that write at once may lose each other's
    times, which are then taken again.
    """
    with path.open('w') as file:
        end = time.monotonic() + _PATIENCE
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    break
                time.sleep(0.01)
            except OSError:  # a file system that knows no locks
                break
        yield
