"""Which backend a call runs on: the one that is asked for, else the cheapest.

The cheapest by a measured cost model, not by a timing: timings differ from run to run,
and with them the choice and the last bits of the result.
"""

import functools
import itertools
import os
from collections.abc import Callable, Hashable, Iterator

from .backends import cpu, triton
from .backends.base import Backend, Passes
from .backends.torch_conv import TorchConv
from .backends.torch_fft import TorchFFT
from .problem import Problem

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
    problem: Problem, passes: Passes, name: str | None = None
) -> tuple[Backend, ...]:
    """Choose the backends of a call.

    Args:
        problem: What is computed.
        passes: Which passes: ('forward',), ('input',), ('weight',) or
            ('input', 'weight').
        name: A backend to insist on, or None.

    Returns:
        For each pass the backend that the argument names, else the one that
        `PELK_MM_CONV` names, else the one of the least expected time.

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
    return _cheapest(problem, passes, tuple(state() for state in _states()))


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
