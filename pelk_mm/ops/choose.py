"""Which backend a call runs on: the one that is asked for, else the cheapest.

The cheapest by a measured cost model, not by a timing: timings differ from run to run,
and with them the choice and the last bits of the result. On CUDA alone, and where
`torch.backends.cudnn.benchmark` asks for that very trade, the candidates are timed once
(`tuning`): cards differ too much for a model.
"""

import functools
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator

from . import tuning
from .backends import cpu, triton
from .backends.base import Backend, Passes
from .backends.torch_conv import TorchConv
from .backends.torch_fft import TorchFFT
from .problem import Problem
from .tuning_file import Times

ENVIRONMENT_VARIABLE = 'PELK_MM_CONV'

#: All backends by name. Of those whose costs nobody has measured the first is chosen.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        *cpu.BACKENDS,
        TorchConv('channels_last'),
        TorchConv('nchw'),
        TorchFFT(),
        *triton.BACKENDS,
    )
}


def require_known(name: str | None) -> None:
    """Refuse the name of a backend that does not exist.

    Raises:
        ValueError: There is none of that name.
    """
    if name is not None and name not in BACKENDS:
        raise ValueError(
            f'there is no convolution backend {name!r}; choose one of '
            f'{list(BACKENDS)} or None for the expected fastest'
        )


def available(problem: Problem) -> list[str]:
    """Names of the backends that can compute a problem."""
    return [name for name, b in BACKENDS.items() if b.why_not(problem) is None]


def choose(
    problem: Problem, passes: Passes, name: str | None = None, may_time: bool = True
) -> tuple[Backend, ...]:
    """Choose the backends of a call.

    Args:
        problem: What is computed.
        passes: Which passes: ('forward',), ('input',), ('weight',) or
            ('input', 'weight').
        name: A backend to insist on, or None.
        may_time: Whether candidates on CUDA may be timed now.

    Returns:
        For each pass the backend that the argument names, else the one that
        `PELK_MM_CONV` names, else the one of the least measured or expected time.

    Raises:
        ValueError: The backend named does not exist or cannot compute the problem;
            the message says why.
    """
    if name is not None:
        return (_require(problem, name),) * len(passes)
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    if name:
        try:
            return (_require(problem, name),) * len(passes)
        except ValueError as error:
            raise ValueError(
                f'{ENVIRONMENT_VARIABLE}={name}: {error}, or unset the variable'
            ) from None
    if problem.plain:
        # Nobody knows what will run it, and no cache can hold symbolic sizes.
        return (BACKENDS[available(problem)[0]],) * len(passes)
    states = tuple(state() for state in _states())
    if is_timed(problem):
        option = _fastest(problem, passes, states, may_time)
        if option is not None:
            return option
    return _cheapest(problem, passes, states)


def is_timed(problem: Problem) -> bool:
    """Whether timing, where it is possible, chooses a problem's backends."""
    return problem.device == 'cuda' and not problem.plain and tuning.is_on()


def _require(problem: Problem, name: str) -> Backend:
    require_known(name)
    reason = BACKENDS[name].why_not(problem)
    if reason is not None:
        raise ValueError(
            f'the backend {name!r} cannot compute this convolution, because {reason}; '
            f'choose one of {available(problem)}'
        )
    return BACKENDS[name]


@functools.cache
def _states() -> tuple[Callable[[], Hashable], ...]:
    """What tells on what answers depend apart from the problem, each once."""
    return tuple(dict.fromkeys(type(b).state for b in BACKENDS.values()))


@functools.lru_cache(maxsize=4096)
def _cheapest(
    problem: Problem, passes: Passes, states: tuple[Hashable, ...]
) -> tuple[Backend, ...]:
    able = [b for b in BACKENDS.values() if b.why_not(problem) is None]
    able = [b for b in able if not b.stands_in] or able
    options = itertools.product(able, repeat=len(passes))
    return min(options, key=lambda option: expected_time(problem, passes, option))


#: Fastest options found, by all that they depend on.
_found: dict[Hashable, tuple[Backend, ...]] = {}
_MAX_FOUND = 4096
_found_lock = threading.Lock()


def _fastest(
    problem: Problem, passes: Passes, states: tuple[Hashable, ...], may_time: bool
) -> tuple[Backend, ...] | None:
    """The option of the least measured time, or None where nothing was measured."""
    key = tuning.TUNER, problem, passes, states
    option = _found.get(key)
    if option is None:
        times = measured(problem, passes, may_time)
        options = _options(problem, passes)
        # Some may have failed, before or now.
        totals = {o: measured_time(passes, o, times or {}) for o in options}
        known = {o: total for o, total in totals.items() if total is not None}
        if not known:
            return None
        option = min(known, key=known.__getitem__)
        with _found_lock:
            tuning.remember(_found, key, option, _MAX_FOUND)
    return option


def _options(problem: Problem, passes: Passes) -> list[tuple[Backend, ...]]:
    able = [BACKENDS[name] for name in available(problem)]
    return list(itertools.product(able, repeat=len(passes)))


def measured(problem: Problem, passes: Passes, may_time: bool = False) -> Times | None:
    """Measured times of a problem on CUDA.

    Args:
        problem: The problem.
        passes: The passes.
        may_time: Whether those that are not known may be taken now.

    Returns:
        Nanoseconds by `tuning.label`; None where none are known.
    """
    if not is_timed(problem):
        return None
    options = _options(problem, passes)
    if len(options) < 2:
        return None
    candidates = dict.fromkeys(
        candidate for option in options for candidate in by_backend(passes, option)
    )
    return tuning.TUNER.times(problem, passes, list(candidates), may_time)


def measured_time(
    passes: Passes, option: tuple[Backend, ...], times: Times
) -> float | None:
    """Measured nanoseconds of passes, each on a backend, or None."""
    labels = map(tuning.label, by_backend(passes, option))
    parts = [times.get(label) for label in labels]
    return None if None in parts else sum(part for part in parts if part is not None)


def leave_out(
    problem: Problem,
    passes: Passes,
    name: str | None,
    option: tuple[Backend, ...],
    error: RuntimeError,
) -> None:
    """Go on without backends that found out, in a call, that they cannot compute it.

    Their `why_not` tells so from then on. Warns of it, with the reason.

    Args:
        problem: What was to be computed.
        passes: The passes.
        name: The backend insisted on, or None.
        option: The backends that were chosen.
        error: What the call raised.

    Raises:
        RuntimeError: The error, where none of them has a reason or none is left.
        ValueError: One of them was insisted on; says what it cannot do and why.
    """
    reasons = {b.name: b.why_not(problem) for b in option}
    reasons = {lost: reason for lost, reason in reasons.items() if reason is not None}
    if not reasons:
        raise error
    again = choose(problem, passes, name)
    if again == option:
        raise error
    for lost, reason in reasons.items():
        warnings.warn(
            f'pelk_mm: the backend {lost!r} is left out from now on, because {reason}; '
            f'{" and ".join(dict.fromkeys(b.name for b in again))} computes '
            f'{" and ".join(passes)} instead',
            RuntimeWarning,
            stacklevel=2,
        )


def by_backend(
    passes: Passes, option: tuple[Backend, ...]
) -> Iterator[tuple[Backend, Passes]]:
    """Group passes by the backend that computes them, in one call each."""
    for backend in dict.fromkeys(option):
        yield (
            backend,
            tuple(p for p, b in zip(passes, option, strict=True) if b is backend),
        )


def expected_time(
    problem: Problem, passes: Passes, option: tuple[Backend, ...]
) -> float:
    """Expected nanoseconds of passes, each on a backend; passes on one share work."""
    return sum(b.cost(problem, own) for b, own in by_backend(passes, option))
