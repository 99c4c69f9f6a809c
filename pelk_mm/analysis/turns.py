"""Timing one call, and several works in turns.

Times are compared only within one run, as ratios: on a machine that others use too,
two runs differ by more than most changes are worth.
"""

import random
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

from pelk_mm.ops.stopwatch import event_seconds

Name = TypeVar('Name', bound=Hashable)
#: Runs a work once; returns the seconds that it took.
Timer = Callable[[Callable[[], object]], float]


def wall_seconds(work: Callable[[], object]) -> float:
    """Time a call by the wall clock, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def processor_seconds(work: Callable[[], object]) -> float:
    """Time for which all threads of this process had a processor, in seconds.

    It leaves out what other programs take of a busy machine.
    """
    start = time.process_time()
    work()
    return time.process_time() - start


def synchronised_seconds(work: Callable[[], object]) -> float:
    """Time a call by the wall clock, from an idle GPU until it is idle again."""
    torch.cuda.synchronize()

    def run() -> None:
        work()
        torch.cuda.synchronize()

    return wall_seconds(run)


def timer_for(device: str, own_stream: bool = False, threads: int = 0) -> Timer:
    """What times a work on a device.

    Args:
        device: Type of the device that computes.
        threads: Threads that compute on the CPU; on one the wall clock is not needed.
        own_stream: Whether the work runs on a CUDA stream other than torch's, of which
            torch's events know nothing.
    """
    if device == 'cpu':
        return processor_seconds if threads == 1 else wall_seconds
    return synchronised_seconds if own_stream else event_seconds


def collect_turns(
    works: Mapping[Name, Callable[[], float]],
    seconds: float = 0.0,
    turns: int = 3,
    say: Callable[[str], object] = lambda text: None,
) -> dict[Name, list[float]]:
    """Run works in turns: once beforehand, then until time is up.

    Every turn has another order: what ran before leaves the cache and the threads in
    better or worse shape.

    Args:
        works: What to run, by name; each returns the seconds that it took.
        seconds: Time to spend, about.
        turns: Least number of turns that count.
        say: Told of every turn that is done.

    Returns:
        The seconds of every turn that counts, by name.
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
        say(f'turn {done}')
    return times
