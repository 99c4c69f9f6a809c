"""What the benchmarks share: clocks, taking turns, and what they say of the machine.

Times are compared only within one run, as ratios: on a machine that others use too,
two runs differ by more than most changes are worth.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pelk_mm.analysis.machine import describe_machine, set_up_device
from pelk_mm.analysis.turns import Name, collect_turns
from pelk_mm.files import write_atomically
from pelk_mm.ops.stopwatch import event_seconds


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


def add_device(parser: argparse.ArgumentParser, default: str = 'cpu') -> None:
    """Add the argument that says where to compute."""
    parser.add_argument(
        '--device',
        choices=('cpu', 'cuda'),
        default=default,
        help='where to compute (default: %(default)s)',
    )


def prepare(threads: int, device: str = 'cpu') -> dict[str, str | int]:
    """Set threads and seed, and print and return what times depend on.

    On CUDA convolutions are timed and chosen as in training by our configs, and float32
    is float32, without tf32.

    Args:
        threads: Threads that torch is to use.
        device: Type of the device that computes.

    Returns:
        Processor, instruction set of the compiled kernels, threads and torch's version;
        on CUDA the card, its driver and clocks and triton's version too.

    Raises:
        SystemExit: There is no such device.
    """
    if device == 'cuda' and not torch.cuda.is_available():
        raise SystemExit(
            f'--device cuda: torch {torch.__version__} finds no NVIDIA GPU here; run '
            'it where there is one, with a torch built for CUDA, or with --device cpu'
        )
    set_up_device(threads, device)
    machine = describe_machine(threads, device)
    line = ', '.join(f'{key}: {value}' for key, value in machine.items())
    print(f'# {line}', end='\n\n', flush=True)
    return machine


def write_json(path: str, found: Any) -> None:
    """Write results to a file, completely or not at all."""
    write_text(path, json.dumps(found, indent=1))


def write_text(path: str, text: str) -> None:
    """Write a text to a file, completely or not at all."""
    with write_atomically(Path(path)) as temporary:
        temporary.write_text(text)


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


def seconds_of(
    work: Callable[..., object], *arguments: object, device: str = 'cpu'
) -> float:
    """Time one call, in seconds: on CUDA by events, else by `clock`."""
    if device == 'cuda':
        return event_seconds(lambda: work(*arguments))
    start = clock(device)
    work(*arguments)
    return clock(device) - start


def median_seconds(work: Callable[[], object], device: str = 'cpu') -> float:
    """Time a call, in seconds: the median of 3 to 30 calls after a first one."""
    work()
    first = seconds_of(work, device=device)
    calls = max(3, min(30, int(0.02 / max(1e-6, first))))
    return statistics.median(seconds_of(work, device=device) for _ in range(calls))


def take_turns(
    works: Mapping[Name, Callable[[], float]], seconds: float = 0.0, turns: int = 3
) -> dict[Name, float]:
    """Run works in turns, see `collect_turns`.

    Args:
        works: What to run, by name; each returns the seconds that it took.
        seconds: Time to spend, about.
        turns: Least number of turns that count.

    Returns:
        Median seconds by name.
    """
    times = collect_turns(works, seconds, turns)
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
