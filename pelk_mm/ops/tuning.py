"""Measured times of the backends, taken once and remembered."""

import threading
import warnings
from collections.abc import Hashable, Sequence
from typing import TypeVar

import torch

from ._torch_compat import is_watched
from .problem import Problem, dtype_name
from .stopwatch import Candidate, CudaStopwatch, Stopwatch
from .tuning_file import MAX_MACHINES, MAX_PROBLEMS, Times, TuningFile

_Key = TypeVar('_Key', bound=Hashable)
_Value = TypeVar('_Value')


def is_on() -> bool:
    """Whether torch is asked to time convolutions, and not for results that repeat."""
    cudnn = torch.backends.cudnn
    return (
        cudnn.benchmark
        and not cudnn.deterministic
        and not torch.are_deterministic_algorithms_enabled()
    )


def may_run() -> bool:
    """Whether work may be started now that nobody asked for.

    A CUDA graph would have it captured, and tracers and counters would record it.
    """
    return not (
        (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_watched()
    )


def remember(
    entries: dict[_Key, _Value], key: _Key, value: _Value, most: int
) -> _Value:
    """Add an entry, and of more than `most` drop the oldest.

    Images of ever new sizes would fill the memory otherwise.

    Returns:
        The entry's value.
    """
    entries[key] = value
    if len(entries) > most:
        del entries[next(iter(entries))]
    return value


def label(candidate: Candidate) -> str:
    """What the file calls a candidate."""
    backend, passes = candidate
    return f'{backend.name} {"+".join(passes)}'


def problem_label(problem: Problem, passes: Sequence[str]) -> str:
    """What the file calls passes of a problem."""
    parts = [
        'x'.join(map(str, problem.shape)),
        'x'.join(map(str, problem.kernel)),
        'dense' if problem.grid is None else ','.join(map(str, problem.grid)),
        dtype_name(problem.dtype),
        'channels_last' if problem.channels_last else 'contiguous',
        '+'.join(passes),
    ]
    return ' '.join(parts)


class Tuner:
    """Times of all candidates of a problem: remembered, read from a file or taken.

    Args:
        stopwatch: What takes them.
        file: What keeps them.
    """

    def __init__(self, stopwatch: Stopwatch, file: TuningFile) -> None:
        self.stopwatch, self.file = stopwatch, file
        #: By machine and problem; empty where it is not to be timed.
        self._times: dict[str, dict[str, Times]] = {}
        self._warned: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def times(
        self,
        problem: Problem,
        passes: Sequence[str],
        candidates: Sequence[Candidate],
        may_time: bool = True,
    ) -> Times | None:
        """Times of the candidates for passes of a problem.

        Args:
            problem: The problem.
            passes: The passes.
            candidates: Who can compute some of them.
            may_time: Whether to take the times that are not known yet, if the moment
                allows it.

        Returns:
            Nanoseconds by `label`, without candidates that failed; None where nothing
            is known.
        """
        machine = self.stopwatch.machine()
        if machine is None or 0 in problem.shape:
            return None
        name = problem_label(problem, passes)
        with self._lock:
            known = self._times.get(machine)
            if known is None:
                known = self.file.read(machine)
                remember(self._times, machine, known, MAX_MACHINES)
            if name not in known and may_time and may_run():
                taken = self._take(problem, candidates, machine, name)
                remember(known, name, taken, MAX_PROBLEMS)
            return known.get(name) or None

    def _take(
        self,
        problem: Problem,
        candidates: Sequence[Candidate],
        machine: str,
        name: str,
    ) -> Times:
        reason = self.stopwatch.shortage(problem)
        if reason is not None:
            # For the whole process, so that a run does not change its mind.
            self._warn('memory', '', f'convolutions are not timed for {name}: {reason}')
            return {}
        found = self.stopwatch.time(problem, candidates)
        times: Times = {}
        for candidate, taken in found.items():
            if isinstance(taken, Exception):
                own = candidate[0].name
                lines = str(taken).strip().splitlines() or ['no message']
                kind = type(taken).__name__
                self._warn(
                    own,
                    kind,
                    f'the backend {own!r} is left out where it failed while it was '
                    f'timed, first for {name}: {kind}: {lines[0]}',
                )
            else:
                times[label(candidate)] = taken
        if len(times) == len(found):
            # What failed may not fail the next time, and is to be told if it does.
            self.file.add(machine, {name: times})
        return times

    def _warn(self, who: str, kind: str, text: str) -> None:
        """Warn once of a kind of failure."""
        if (who, kind) not in self._warned:
            self._warned.add((who, kind))
            warnings.warn(f'pelk_mm: {text}', RuntimeWarning, stacklevel=2)


#: The one that `choose` asks on CUDA.
TUNER = Tuner(CudaStopwatch(), TuningFile())
