"""Times of backends on the GPU that is here, by CUDA events on made-up maps."""

import functools
import importlib.metadata
import math
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..version import __version__
from .backends.base import Backend, Passes, TorchBackend
from .problem import Problem

#: A backend and the passes that it computes in one call.
Candidate = tuple[Backend, Passes]

#: Runs after the first two of a candidate that is not far behind.
_RUNS = 4
#: A first run that takes so many times as long as the best so far is the only one.
_FAR_BEHIND = 2.0
#: What results may differ from torch's by, over the norm: no rounding does, tf32's
#: neither, but a kernel that was compiled wrongly.
_DIFFERENCE = 1e-2
#: Bytes that the backends take whatever the size of the maps.
_FIXED_SCRATCH = 2**28


class Stopwatch(Protocol):
    """What tells how long candidates take. Tests have one that no GPU is needed for."""

    def machine(self) -> str | None:
        """Name all that times depend on; None where nothing can be timed."""

    def shortage(self, problem: Problem) -> str | None:
        """Say why there is too little memory to time a problem, or None."""

    def time(
        self, problem: Problem, candidates: Iterable[Candidate]
    ) -> dict[Candidate, float | Exception]:
        """Time candidates.

        Returns:
            Of each the nanoseconds, or what it raised.
        """


class Operands(NamedTuple):
    """Made-up tensors of a problem's shape."""

    x: Tensor
    grad: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, problem: Problem) -> 'Operands':
        """Draw them, without a trace in torch's random state."""
        generator = torch.Generator(problem.device).manual_seed(0)

        def draw(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.randn(
                shape, dtype=dtype, device=problem.device, generator=generator
            )

        x, grad = (
            draw(problem.shape, problem.dtype).contiguous(
                memory_format=problem.memory_format
            )
            for _ in range(2)
        )
        channels, wide = problem.shape[1], problem.accumulation_dtype
        size = problem.kernel
        if problem.grid is not None:
            size = (len(problem.grid), len(problem.grid))
        return cls(x, grad, draw((channels, *size), wide), draw((channels,), wide))

    def run(
        self, problem: Problem, backend: Backend, passes: Passes
    ) -> dict[str, Tensor]:
        """Compute passes by a backend, and name their results."""
        x, grad, weight, bias = self
        if passes == ('forward',):
            return {'forward': backend.forward(problem, x, weight, bias)}
        seen = x if 'weight' in passes else None
        found = backend.backward(problem, seen, grad, weight, 'input' in passes)
        named = zip(('input', 'weight'), found, strict=True)
        return {name: result for name, result in named if result is not None}


def event_seconds(work: Callable[[], object]) -> float:
    """Time a call on the current CUDA stream by events, in seconds."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end)


def driver_version() -> str:
    """Version of the NVIDIA driver, as far as the system tells."""
    try:
        text = Path('/proc/driver/nvidia/version').read_text()
    except OSError:
        return 'unknown'
    found = re.search(r'\b\d{3,}(\.\d+)+\b', text)
    return found.group() if found else 'unknown'


@functools.cache
def triton_version() -> str:
    """Version of triton, or 'none'."""
    try:
        return importlib.metadata.version('triton')
    except importlib.metadata.PackageNotFoundError:
        return 'none'


@functools.lru_cache(maxsize=64)
def _machine(gpu: str) -> str:
    return (
        f'{gpu}, driver {driver_version()}, torch {torch.__version__}, '
        f'triton {triton_version()}, pelk_mm {__version__}'
    )


class CudaStopwatch:
    """Times on the current GPU and stream.

    Args:
        seconds_of: What times one call, in seconds.
    """

    def __init__(
        self, seconds_of: Callable[[Callable[[], object]], float] = event_seconds
    ) -> None:
        self.seconds_of = seconds_of

    def machine(self) -> str | None:
        """Name the GPU, its driver and the versions of torch, triton and ours."""
        if not torch.cuda.is_available():
            return None
        return _machine(torch.cuda.get_device_name())

    def shortage(self, problem: Problem) -> str | None:
        """Compare what the backends may take with what is free."""
        # Two maps are drawn. Two of a backend's results, its copies in another layout
        # and its copies in the accumulation dtype follow, and are freed again.
        maps = 5 * problem.dtype.itemsize + 4 * problem.accumulation_dtype.itemsize
        needed = math.prod(problem.shape) * maps + _FIXED_SCRATCH
        free, _ = torch.cuda.mem_get_info()
        free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        if needed <= free:
            return None
        needed, free = needed >> 20, free >> 20
        return f'it may take {needed} MiB, and {free} MiB are free'

    def time(
        self, problem: Problem, candidates: Iterable[Candidate]
    ) -> dict[Candidate, float | Exception]:
        """Run candidates one after the other; the first run of each does not count.

        One whose results are not torch's, but for rounding, is an error.
        """
        times: dict[Candidate, float | Exception] = {}
        least: dict[Passes, float] = {}
        samples: dict[Candidate, dict[str, Tensor]] = {}
        latest: dict[str, Tensor] = {}
        with torch.no_grad():
            operands = Operands.of(problem)

            def run(problem: Problem, backend: Backend, passes: Passes) -> None:
                latest.update(operands.run(problem, backend, passes))

            for backend, passes in candidates:
                work = functools.partial(run, problem, backend, passes)
                try:
                    latest.clear()
                    taken = self._median(work, least.get(passes, math.inf))
                    samples[backend, passes] = _sample(latest)
                # Whatever a compiler or a driver raises: the others can run.
                except Exception as error:  # noqa: BLE001
                    # Its traceback would keep the tensors of the run.
                    times[backend, passes] = error.with_traceback(None)
                    continue
                times[backend, passes] = 1e9 * taken
                least[passes] = min(taken, least.get(passes, math.inf))
            bound = max(_DIFFERENCE, 8 * torch.finfo(problem.dtype).eps)
            return {**times, **_wrong(samples, bound)}

    def _median(self, work: Callable[[], object], least: float) -> float:
        self.seconds_of(work)  # compiles, and asks for memory
        first = self.seconds_of(work)
        if first > _FAR_BEHIND * least:
            return first
        return statistics.median(
            [first, *(self.seconds_of(work) for _ in range(_RUNS))]
        )


def _sample(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first and the last channel of results."""
    samples = {}
    for name, result in results.items():
        axis = 0 if name == 'weight' else 1
        count = result.shape[axis]
        ends = (result.narrow(axis, place, 1) for place in (0, count - 1))
        samples[name] = torch.cat([end.double() for end in ends], axis)
    return samples


def _wrong(
    samples: dict[Candidate, dict[str, Tensor]], bound: float
) -> dict[Candidate, Exception]:
    """Candidates whose results differ from those of the first of torch's."""
    trusted: dict[str, Tensor] = {}
    for (backend, _), results in samples.items():
        if isinstance(backend, TorchBackend):
            trusted = {**results, **trusted}
    wrong: dict[Candidate, Exception] = {}
    for candidate, results in samples.items():
        for name in results.keys() & trusted.keys():
            right = trusted[name]
            error = ((results[name] - right).norm() / right.norm()).item()
            if not error <= bound:  # a NaN neither
                wrong[candidate] = ArithmeticError(
                    f"its results ({name}) differ from torch's by {error:.2g} of the "
                    f'norm, more than {bound:.2g}'
                )
    return wrong
