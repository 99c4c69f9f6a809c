"""Processes that each hold one form and compute when they are told to.

Each form has a process of its own: its peak memory is then its own, its threads are no
other's, and what kills it leaves the others alive.
"""

import ctypes
import gc
import multiprocessing
import os
import re
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch

from pelk_mm.checkpoints.files import first_line

from .engines import ENGINES, Setting, first_image
from .machine import set_up_device
from .subjects import Subject, UnavailableError
from .turns import Timer, timer_for

OUT_OF_MEMORY = 'out of memory'


@dataclass(frozen=True)
class Form:
    """What one row of the table is about.

    Attributes:
        subject: The model.
        engine: Key of `ENGINES`.
        setting: What all forms have alike.
        folder: Where exports are written and read.
    """

    subject: Subject
    engine: str
    setting: Setting
    folder: Path


# ------------------------------------------------------------------ memory


class Memory(Protocol):
    """Counts the memory that is taken from its creation on."""

    def restart(self) -> None:
        """Forget the peak up to now, but not what is held."""

    def peak(self) -> int | None:
        """Most bytes held since, beyond those at its creation; None if unknown."""


class ResidentMemory:
    """Memory of this process that is in use, as Linux counts it.

    Its peak is reset before the inferences (``/proc/self/clear_refs``), so that what
    building, loading and compiling took for a moment does not count.
    """

    def __init__(self) -> None:
        self.baseline = self._read('VmRSS')
        self.resets = False

    @staticmethod
    def _read(name: str) -> int | None:
        try:
            text = Path('/proc/self/status').read_text()
        except OSError:
            return None
        found = re.search(rf'^{name}:\s+(\d+) kB', text, re.MULTILINE)
        return None if found is None else int(found[1]) * 1024

    def restart(self) -> None:
        """Have the system forget the peak."""
        try:
            Path('/proc/self/clear_refs').write_text('5')
        except OSError:
            return
        self.resets = True

    def peak(self) -> int | None:
        """The peak beyond the baseline; None where the system does not tell."""
        highest = self._read('VmHWM')
        if self.baseline is None or highest is None or not self.resets:
            return None
        return highest - self.baseline


class CudaMemory:
    """Memory that torch's allocator has given out on the current GPU."""

    def __init__(self) -> None:
        self.baseline = torch.cuda.memory_allocated()

    def restart(self) -> None:
        """Forget the peak."""
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int | None:
        """The peak beyond the baseline."""
        return torch.cuda.max_memory_allocated() - self.baseline


class UnknownMemory:
    """Memory that nobody counts."""

    def restart(self) -> None:
        """Do nothing."""

    def peak(self) -> None:
        """Unknown."""


def memory_for(form: Form, alone: bool) -> Memory:
    """What counts a form's memory.

    Args:
        form: The form.
        alone: Whether it has a process of its own.
    """
    if form.setting.device == 'cpu':
        return ResidentMemory() if alone else UnknownMemory()
    return UnknownMemory() if ENGINES[form.engine].own_stream else CudaMemory()


def give_back() -> None:
    """Return freed memory to the system, where the C library can."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc
        return


# ------------------------------------------------------------------ workers


@dataclass(frozen=True)
class Ready:
    """What is known of a form before it is timed.

    Attributes:
        outputs: What it computes of the first image.
        seconds: Time until then: loading, compiling and the first inference.
    """

    outputs: list[np.ndarray]
    seconds: float


class Worker(Protocol):
    """Holds one form."""

    def export(self) -> None:
        """Write the form's files."""

    def prepare(self) -> Ready:
        """Load the form and compute once."""

    def run(self) -> float:
        """Compute once more; returns the seconds."""

    def peak_memory(self) -> int | None:
        """Most bytes held in `run`, those that `prepare` loaded included."""

    def close(self) -> None:
        """Free what it holds."""


#: Creates the worker of a form.
OpenWorker = Callable[[Form], Worker]


class LocalWorker:
    """A worker in this process.

    Args:
        form: What to run.
        alone: Whether the process has no other form.
        timer: What times a call; by default the device's.
    """

    def __init__(
        self, form: Form, alone: bool = False, timer: Timer | None = None
    ) -> None:
        self.form, self.alone = form, alone
        kind = ENGINES[form.engine]
        setting = form.setting
        self.timer = timer or timer_for(
            setting.device, kind.own_stream, setting.threads
        )
        self._engine: Any = None
        self.memory: Memory = UnknownMemory()

    def _create(self) -> Any:
        set_up_device(self.form.setting.threads, self.form.setting.device)
        kind = ENGINES[self.form.engine]
        return kind(self.form.subject, self.form.setting, self.form.folder)

    def export(self) -> None:
        """Write the form's files."""
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            self._create().export()

    def prepare(self) -> Ready:
        """Load the form and compute once."""
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            engine = self._create()
            give_back()
            self.memory = memory_for(self.form, self.alone)
            start = perf_counter()
            engine.load()
            outputs = first_image(engine.infer())
            seconds = perf_counter() - start
        self._engine = engine
        give_back()
        self.memory.restart()
        return Ready(outputs, seconds)

    def run(self) -> float:
        """Compute once more; returns the seconds."""
        return self.timer(self._engine.infer)

    def peak_memory(self) -> int | None:
        """Most bytes held in `run`."""
        return self.memory.peak()

    def close(self) -> None:
        """Free what it holds."""
        self._engine = None
        gc.collect()


def explain(error: BaseException) -> str:
    """Say in one line why a form could not be measured."""
    text = first_line(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return OUT_OF_MEMORY
    if isinstance(error, ValueError):  # ours, a sentence already
        return text
    return f'{type(error).__name__}: {text}'


def serve(connection: Connection, form: Form) -> None:
    """Do in a process of its own what the other end of a connection asks for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end ends this process
    os.dup2(2, 1)  # what exporters print is no part of the table
    worker = LocalWorker(form, alone=True)
    with suppress(EOFError, BrokenPipeError):  # the other end is gone
        while True:
            request = connection.recv()
            try:
                reply = getattr(worker, request)()
            # Whatever a compiler or a runtime raises: the other forms can run.
            except Exception as error:
                reply = UnavailableError(explain(error))
            connection.send(reply)


class ProcessWorker:
    """A worker in a process of its own.

    Args:
        form: What to run.
    """

    def __init__(self, form: Form) -> None:
        # Not forked: threads and CUDA do not survive it.
        context = multiprocessing.get_context('spawn')
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, form))
        self.process.start()
        other.close()

    def _ask(self, request: str) -> Any:
        try:
            self.connection.send(request)
            reply = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join()
            raise UnavailableError(_explain_end(self.process.exitcode)) from error
        if isinstance(reply, Exception):
            raise reply
        return reply

    def export(self) -> None:
        """Write the form's files."""
        self._ask('export')

    def prepare(self) -> Ready:
        """Load the form and compute once."""
        return self._ask('prepare')

    def run(self) -> float:
        """Compute once more; returns the seconds."""
        return self._ask('run')

    def peak_memory(self) -> int | None:
        """Most bytes held in `run`."""
        return self._ask('peak_memory')

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def _explain_end(code: int | None) -> str:
    """Say why a process is no more."""
    if code == -signal.SIGKILL:
        return f'{OUT_OF_MEMORY}: the system killed its process'
    if code is not None and code < 0:
        return f'its process ended by {signal.Signals(-code).name}'
    return f'its process ended with exit code {code}'
