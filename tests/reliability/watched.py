"""Runs calls in forked processes and tells what each did besides returning."""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

#: Processor time that a call may take, and time by the clock on a busy machine.
SECONDS, PATIENCE = 10, 100
#: What a call may take beyond what it takes for the undamaged file: a multiple of the
#: file and a constant, for messages and for what allocators keep.
TIMES, SLACK = 4, 48 << 20
#: Address space beyond that at the start of a process, so that a test kills no machine.
_SPACE = 6 << 30

#: Events of Python's audit hooks that start programs or reach for other machines.
_STARTS = (
    'os.system',
    'os.exec',
    'os.posix_spawn',
    'os.spawn',
    'subprocess.Popen',
    'pty.spawn',
    'socket.connect',
)
#: What mmengine asks for its log.
_USUAL = ['git', 'rev-parse', 'HEAD']
_CHANGES = ('os.remove', 'os.rename', 'os.mkdir', 'os.symlink', 'os.link', 'os.rmdir')
_OUT_OF_MEMORY = ('MemoryError', "can't allocate memory", 'not enough memory')


class Call(NamedTuple):
    """A call to watch.

    Attributes:
        name: What it is called.
        function: Called with the file and an empty folder for results; raises nothing
            but SystemExit.
        baseline: Memory that it takes for an undamaged file.
    """

    name: str
    function: Callable[[Path, Path], Any]
    baseline: int = 0


class Outcome(NamedTuple):
    """What a call did.

    Attributes:
        case: Number of the file.
        call: Name of the call.
        faults: What it must not do.
        seconds: Processor time.
        memory: Most memory beyond that before, in bytes.
        said: What it printed last, or with which code it ended.
    """

    case: int
    call: str
    faults: list[str]
    seconds: float = 0.0
    memory: int = 0
    said: str = ''


class _Audit:
    """Notes what is written outside of some folders, and what is started."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.noted: list[str] | None = None
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.noted is None:
            return
        if event in _STARTS and arguments[1:2] != (_USUAL,):
            self.noted.append(f'{event} {arguments!r:.200}')
        elif event == 'open' and isinstance(arguments[0], (str, bytes)):
            path, _, flags = arguments
            if flags is not None and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._note(event, os.fsdecode(path))
        elif event in _CHANGES:
            *paths, folder = (
                (*arguments[:2], arguments[-1])
                if event in ('os.rename', 'os.link', 'os.symlink')
                else (arguments[0], arguments[-1])
            )
            for path in paths:
                if isinstance(path, (str, bytes, os.PathLike)):
                    place = os.fsdecode(path)
                    if folder not in (None, -1):  # the number of an open folder
                        opened = os.readlink(f'/proc/self/fd/{folder}')
                        place = os.path.join(opened, place)
                    self._note(event, place)

    def _note(self, event: str, path: str) -> None:
        place = os.path.realpath(path)
        if not f'{place}/'.startswith(self.allowed):
            assert self.noted is not None
            self.noted.append(f'{event} of {place}')


def _tree(folder: Path) -> dict[str, tuple[int, int] | str]:
    """Everything in a folder with sizes and times, links not followed."""
    found: dict[str, tuple[int, int] | str] = {}
    for path in folder.rglob('*'):
        facts = path.lstat()
        link = path.is_symlink()
        found[str(path)] = (
            os.readlink(path) if link else (facts.st_size, facts.st_mtime_ns)
        )
        if path.is_dir() and not link:
            found[str(path)] = (0, 0)
    return found


def _memory(key: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    raise KeyError(key)


def start_clock() -> None:
    """Give what follows all its time, as to each of several tools in one call."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)


class Room:
    """Folders that a call sees, and what must stay as it is in them.

    Args:
        root: An empty folder. ``input`` gets the file, ``out`` the results; ``outside``
            has what no call may touch, and must stay without the marker.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.input, self.out, self.outside, self.work, self.temporary = (
            root / name for name in ('input', 'out', 'outside', 'work', 'temporary')
        )
        for folder in (self.input, self.outside, self.work, self.temporary):
            folder.mkdir(parents=True)
        (self.outside / 'kept').write_text('kept')
        self.marker = str(self.outside / 'marker')

    def empty(self) -> None:
        """Remove what the call before has left in the folder of results."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Work in it: current folder, home and temporary files, and quiet output."""
        os.chdir(self.work)
        os.environ['HOME'] = str(self.work)
        os.environ['TORCHINDUCTOR_CACHE_DIR'] = str(self.temporary)
        tempfile.tempdir = str(self.temporary)
        said = os.open(self.root / 'said', os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        stream = os.fdopen(1, 'w', buffering=1, errors='replace', closefd=False)
        sys.stdout = sys.stderr = stream
        yield
        os.close(said)

    def said(self) -> str:
        """What was printed since the last question."""
        sys.stdout.flush()
        text = (self.root / 'said').read_bytes().decode(errors='replace')
        os.ftruncate(1, 0)
        os.lseek(1, 0, os.SEEK_SET)
        return text


def _watch(audit: _Audit, room: Room, case: int, call: Call, file: Path) -> Outcome:
    """Make a call and look at what it has done."""
    room.empty()
    before = _tree(room.root)
    faults: list[str] = []
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
    memory = _memory('VmRSS')
    audit.noted = []
    start_clock()
    started = sum(os.times()[:2])
    ended: Any = 0
    try:
        call.function(file, room.out)
    except SystemExit as end:
        ended = end.code or 0
    except BaseException:
        faults.append('traceback: ' + traceback.format_exc()[-1500:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = sum(os.times()[:2]) - started
    used = _memory('VmHWM') - memory
    noted, audit.noted = audit.noted, None
    said = room.said()
    if isinstance(ended, str):
        said += ended
    if 'Traceback (most recent' in said:
        faults.append(f'traceback: {said[-1500:]}')
    if any(text in said for text in _OUT_OF_MEMORY):
        faults.append(f'memory: {said[-300:]}')
    if ended and not said.strip():
        faults.append(f'silence: ended with {ended!r}')
    most = call.baseline + TIMES * file.stat().st_size + SLACK
    if used > most:
        faults.append(f'memory: {used >> 20} MiB of {most >> 20}')
    faults += [f'effect: {event}' for event in noted]
    os.chdir(room.work)
    after = _tree(room.root)
    changed = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
    inside = (f'{room.out}/', str(room.root / 'said'))
    faults += [f'effect: changed {p}' for p in changed if not p.startswith(inside)]
    last = said.strip().splitlines()[-1:] or [f'code {ended}']
    return Outcome(case, call.name, faults, seconds, used, last[0][:300])


def _work(
    write: Callable[[int, Room], Path],
    calls: Sequence[Call],
    tasks: Sequence[tuple[int, int]],
    folder: Path,
    pipe: int,
) -> None:
    """What a forked process does: calls by number of case and of call."""
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    space = _memory('VmSize') + _SPACE
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    room = Room(folder)
    audit = _Audit()
    # Not what merely begins with the same letters.
    audit.allowed = (f'{room.out}/', f'{room.temporary}/', '/proc/self/', '/dev/')
    sys.dont_write_bytecode = True
    file, written = Path(), None
    with room.entered():
        for case, number in tasks:
            if case != written:
                shutil.rmtree(room.input)
                room.input.mkdir()
                file, written = write(case, room), case
            os.write(pipe, f'{json.dumps([case, number])}\n'.encode())
            outcome = _watch(audit, room, case, calls[number], file)
            os.write(pipe, f'{json.dumps(outcome)}\n'.encode())


def with_baselines(
    write: Callable[[int, Room], Path], calls: Sequence[Call], folder: Path
) -> list[Call]:
    """The calls with what each takes for an undamaged file in a process of its own.

    So what a process imports with its first call is in it.

    Args:
        write: Writes that file, of number -1.
        calls: The calls.
        folder: An empty folder to work in.
    """
    measured = []
    for call in calls:
        (outcome,) = watch(write, [call], [(-1, 0)], folder)
        assert not outcome.faults or outcome.faults[0].startswith('memory: '), outcome
        measured.append(call._replace(baseline=max(outcome.memory, 0)))
    return measured


def watch(
    write: Callable[[int, Room], Path],
    calls: Sequence[Call],
    tasks: Sequence[tuple[int, int]],
    folder: Path,
) -> Iterator[Outcome]:
    """Make calls in forked processes, a new one after each that dies.

    Args:
        write: Writes the file of a case into a room and returns its path.
        calls: The calls.
        tasks: Numbers of case and call, in the order to take them.
        folder: An empty folder to work in.
    """
    at = attempt = 0
    while at < len(tasks):
        attempt += 1
        reader, writer = os.pipe()
        room = folder / f'room{attempt}'
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(reader)
                _work(write, calls, tasks[at : at + 100], room, writer)
                status = 0
            except BaseException:
                os.write(writer, f'{json.dumps(traceback.format_exc())}\n'.encode())
            finally:
                os._exit(status)
        os.close(writer)
        begun: list[int] | None = None
        with os.fdopen(reader) as lines:
            for line in lines:
                message = json.loads(line)
                if isinstance(message, str):
                    raise RuntimeError(message)
                if len(message) == 2:
                    begun = message
                    continue
                yield Outcome(*message)
                begun, at = None, at + 1
        status = os.waitpid(child, 0)[1]
        if begun is not None:
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            hang = number in (signal.SIGPROF, signal.SIGALRM)
            cause = 'hang' if hang else f'death: signal {number}, status {status}'
            yield Outcome(begun[0], calls[begun[1]].name, [cause])
            at += 1
        with suppress(OSError):
            shutil.rmtree(room)
