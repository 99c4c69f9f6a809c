"""What the benchmarks share: a clock, taking turns, and what they say of the machine.

Times are compared only within one run, as ratios: on a machine that others use too,
two runs differ by more than most changes are worth.
"""

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from pelk_mm import ops

Name = TypeVar('Name', bound=Hashable)


def make_parser(description: str, threads: int | None = 2) -> argparse.ArgumentParser:
    """Create a command line with the argument that the benchmarks share.

    Args:
        description: The script's docstring, shown by ``--help`` as it is.
        threads: Default of ``--threads``; None leaves the argument out.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if threads is not None:
        parser.add_argument(
            '--threads',
            type=int,
            default=threads,
            help='threads that torch uses (default: %(default)s)',
        )
    return parser


def prepare(threads: int) -> dict[str, str | int]:
    """Set threads and seed, and print and return what times depend on.

    Args:
        threads: Threads that torch is to use.

    Returns:
        Processor, instruction set of the compiled kernels, threads and torch's version.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    machine: dict[str, str | int] = {
        'processor': processor(),
        'instruction set': ops.instruction_set(),
        'threads': threads,
        'torch': torch.__version__,
    }
    line = ', '.join(f'{key}: {value}' for key, value in machine.items())
    print(f'# {line}', end='\n\n', flush=True)
    return machine


def processor() -> str:
    """Name the processor, as far as the system tells."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(':', 1) for line in lines if ':' in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    name = fields.get('model name', platform.machine())
    return f'{name}, model {fields.get("model", "?")}'


def clock(device: str = 'cpu') -> float:
    """Read the wall clock, or on one CPU thread the time that it had the processor.

    The latter leaves out what other programs take from a busy machine.

    Args:
        device: Type of the device that computes; one that works asynchronously is
            waited for.

    Returns:
        Seconds, since some moment in the past.
    """
    if device == 'cpu' and torch.get_num_threads() == 1:
        return time.thread_time()
    if device != 'cpu':
        torch.accelerator.synchronize()
    return time.perf_counter()


def seconds_of(work: Callable[..., object], *arguments: object) -> float:
    """Time one call, in seconds."""
    start = clock()
    work(*arguments)
    return clock() - start


def median_seconds(work: Callable[[], object]) -> float:
    """Time a call, in seconds: the median of 3 to 30 calls after a first one."""
    work()
    first = seconds_of(work)
    calls = max(3, min(30, int(0.02 / max(1e-6, first))))
    return statistics.median(seconds_of(work) for _ in range(calls))


def take_turns(
    works: Mapping[Name, Callable[[], float]], seconds: float = 0.0, turns: int = 3
) -> dict[Name, float]:
    """Run works in turns: once beforehand, then until time is up.

    Every turn has another order: what ran before leaves the cache and the threads in
    better or worse shape.

    Args:
        works: What to run, by name; each returns the seconds that it took.
        seconds: Time to spend, about.
        turns: Least number of turns that count.

    Returns:
        Median seconds by name.
    """
    times: dict[Name, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    order, shuffle = list(works), random.Random(0).shuffle
    end = time.perf_counter() + seconds
    done = 0
    while time.perf_counter() < end or done < turns:
        shuffle(order)
        for name in order:
            times[name].append(works[name]())
        done += 1
    return {name: statistics.median(taken) for name, taken in times.items()}


def ratios(medians: Mapping[Name, float], base: Name) -> dict[Name, float]:
    """Every other time as a multiple of one.

    Args:
        medians: Seconds by name, out of `take_turns`.
        base: Name of the time to divide by.

    Returns:
        Ratios by name, without the base's own.
    """
    return {
        name: taken / medians[base] for name, taken in medians.items() if name != base
    }
