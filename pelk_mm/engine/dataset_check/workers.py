"""Run a function over numbers in processes of which any may die."""

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TextIO

import cv2
import torch

#: Numbers that a process is given at a time.
_CHUNK = 8

_function: Callable[[int], Any]


class WorkerDiedError(Exception):
    """The process that worked on a number died."""


def _start(function: Callable[[int], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that waits
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _run(numbers: list[int]) -> list[Any]:
    return [_function(number) for number in numbers]


def _pool(function: Callable[[int], Any], workers: int) -> ProcessPoolExecutor:
    # A fork has the data set already, and starts without imports.
    fork = 'fork' in multiprocessing.get_all_start_methods()
    return ProcessPoolExecutor(
        workers,
        multiprocessing.get_context('fork' if fork else 'spawn'),
        initializer=_start,
        initargs=(function,),
    )


def run_in_processes(
    function: Callable[[int], Any], count: int, workers: int
) -> Iterator[tuple[int, Any]]:
    """Call a function with the numbers from 0, in no particular order.

    What a dying process worked on is tried again, one number at a time in a process of
    its own: so a shortage of memory is blamed on a number only if it alone causes it.

    Args:
        function: The function; where processes cannot be forked it has to be picklable.
        count: How many numbers there are.
        workers: Processes; 0 for this one.

    Yields:
        A number and what the function returned, or a `WorkerDiedError`.
    """
    if not workers:
        for number in range(count):
            yield number, function(number)
        return
    chunks = deque(
        list(range(start, min(start + _CHUNK, count)))
        for start in range(0, count, _CHUNK)
    )
    while chunks:
        suspects: list[list[int]] = []
        yield from _run_until_death(function, chunks, workers, suspects)
        for chunk in suspects:
            yield from _one_by_one(function, chunk)


def _run_until_death(
    function: Callable[[int], Any],
    chunks: deque[list[int]],
    workers: int,
    suspects: list[list[int]],
) -> Iterator[tuple[int, Any]]:
    """Work on chunks until all are done or a process dies.

    Args:
        function: The function.
        chunks: The chunks; those that were begun are taken out.
        workers: Processes.
        suspects: Gets the chunks that were begun and are not done.
    """
    running: dict[Future, list[int]] = {}
    with _pool(function, workers) as pool:
        try:
            while running or chunks:
                while chunks and len(running) < 2 * workers and not suspects:
                    try:
                        running[pool.submit(_run, chunks[0])] = chunks[0]
                    except BrokenProcessPool:
                        if not running:  # an idle process died: start anew
                            return
                        break
                    chunks.popleft()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    chunk = running.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        suspects.append(chunk)
                    else:
                        yield from zip(chunk, future.result(), strict=True)
                if suspects and not running:
                    return
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _one_by_one(
    function: Callable[[int], Any], numbers: list[int]
) -> Iterator[tuple[int, Any]]:
    pool = None
    try:
        for number in numbers:
            pool = pool or _pool(function, 1)
            try:
                yield number, pool.submit(_run, [number]).result()[0]
            except BrokenProcessPool:
                pool.shutdown()
                pool = None
                yield number, WorkerDiedError()
    finally:
        if pool:
            pool.shutdown(wait=False, cancel_futures=True)


def show_progress(
    items: Iterable[Any], description: str, total: int, stream: TextIO | None = None
) -> Iterator[Any]:
    """Pass items on and show how many have passed.

    Args:
        items: The items.
        description: What they are.
        total: How many there will be.
        stream: Where to; standard error by default. A terminal gets a line that counts,
            anything else one line per tenth.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()
    step = max(1, total // (100 if terminal else 10))
    for number, item in enumerate(items, start=1):
        yield item
        if number % step == 0 or number == total:
            line = f'{description}: {number} of {total}'
            if terminal:
                line = f'\r{line}' + '\n' * (number == total)
            print(line, end='' if terminal else '\n', file=stream, flush=True)
