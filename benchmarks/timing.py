"""What the benchmarks share: clocks, taking turns, and what they say of the machine.

Times are compared only within one run, as ratios: on a machine that others use too,
two runs differ by more than most changes are worth.
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from pelk_mm import ops
from pelk_mm.files import write_atomically
from pelk_mm.ops.stopwatch import driver_version, event_seconds, triton_version

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
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    machine: dict[str, str | int] = {
        'processor': processor(),
        'instruction set': ops.instruction_set(),
        'threads': threads,
        'torch': torch.__version__,
    }
    if device == 'cuda':
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        machine |= {
            'card': torch.cuda.get_device_name(),
            'driver': driver_version(),
            'triton': triton_version(),
            'clocks': clocks(),
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


def clocks() -> str:
    """The card's clocks now and at most, as far as nvidia-smi tells."""
    fields = ('clocks.sm', 'clocks.max.sm', 'clocks.mem', 'clocks.max.mem')
    command = ['nvidia-smi', f'--query-gpu={",".join(fields)}', '--format=csv,noheader']
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return 'unknown'
    told = [field.strip() for field in done.stdout.splitlines()[0].split(',')]
    return 'SM {} of {}, memory {} of {}'.format(*told)


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
