"""Logs of training runs: reading them, joining resumed ones, and drawing several.

mmengine writes a JSON record per line: those of the training have an ``iter``, those of
the validation only a ``step``, which counts epochs where the metrics are logged by
epoch. Records of mmcv 1.x, in ``*.log.json``, name their ``mode`` instead.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite
from pathlib import Path
from typing import Any

#: Entries of a record that say where it belongs and are no curves.
_PLACES = ('step', 'iter', 'epoch', 'mode')

#: Curves to draw where none are named, in this order, if a run has them.
USUAL_KEYS = ('loss', 'mIoU', 'bbox_mAP', 'segm_mAP', 'accuracy/top1')

#: Parts of names of which a lower value is better, and of scores among the training's.
_LOWER, _HIGHER = ('loss', 'error'), ('acc',)
#: What a validation logs that is no score.
_TIMES = ('time', 'data_time', 'memory')

#: The last iteration that a log may have, and the largest integer that may be drawn.
_LAST_PLACE, _LARGEST = 1e15, 1e300

Point = tuple[float, float]
Curves = dict[str, list[Point]]


class LogError(ValueError):
    """A log that cannot be read or lacks what is asked for."""


@dataclass
class Run:
    """Curves of one training, resumed or not.

    Attributes:
        path: What the user gave.
        training: Points (iteration, value) of the training by key, in order.
        validation: Those of the validation.
        unit: What the points are placed at: ``iteration``, or ``step`` of a log that
            has no record of the training.
        notices: What the user should know of how the run was read.
    """

    path: Path
    training: Curves = field(default_factory=dict)
    validation: Curves = field(default_factory=dict)
    unit: str = 'iteration'
    notices: list[str] = field(default_factory=list)

    def find(self, key: str) -> tuple[list[Point], list[Point]]:
        """Points of a key in the training and in the validation, empty if not there.

        Args:
            key: A name as in the log, in any case, with or without the prefix that it
                has there, such as the ``coco/`` of ``coco/bbox_mAP``.

        Raises:
            LogError: If several names differ from it by their prefixes alone.
        """
        training, validation = (
            curves[name] if (name := _match(key, curves)) else []
            for curves in (self.training, self.validation)
        )
        return training, validation


@dataclass
class _Log:
    """Records of one log file, placed: (iteration, entries)."""

    path: Path
    training: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    validation: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def places(self) -> list[float]:
        """Where the records are, those of the training if there are any."""
        return [place for place, _ in self.training or self.validation]


def read_run(path: Path) -> Run:
    """Read the logs of a run and join them where it was resumed.

    A log replaces what earlier ones have from its start on.

    Args:
        path: A work directory, the folder of one start in it, or a log file.

    Raises:
        LogError: If there is no log, or it is something else or empty.
    """
    run = Run(path)
    logs: list[_Log] = []
    epoch_length = 0
    for file in find_logs(path):
        records, notice = read_records(file)
        run.notices += [notice] * bool(notice)
        log, epoch_length = _place(file, records, epoch_length)
        if log.places():
            logs.append(log)
    if not logs:
        raise LogError(
            f'{path} has no records of a training yet; the first comes after as many '
            "iterations as the config's default_hooks.logger.interval"
        )
    joined = logs[0]
    for log in logs[1:]:
        joined = _join(joined, log, run.notices)
    if not joined.training:
        run.unit = 'step'
    run.training = _curves(joined.training)
    run.validation = _curves(joined.validation)
    return run


def find_logs(path: Path) -> list[Path]:
    """Log files of a run, the oldest first.

    Args:
        path: A work directory, the folder of one start in it, its ``vis_data``, or a
            log file.

    Raises:
        LogError: If there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise LogError(f'{path} does not exist; give a work_dir or a log file')
    # Names of the folders are times, so that they are in order of time.
    folders = [path, path / 'vis_data', *sorted(path.glob('*/vis_data'))]
    found = [log for folder in folders if (log := _log_in(folder))]
    found = found or sorted(path.glob('*.log.json'))
    if not found:
        inside = sorted({log.parents[2] for log in path.glob('*/*/vis_data/*.json')})
        remedy = 'give a work_dir, the folder of a start in it, or a log file'
        if inside:
            remedy = f'give those inside, as {", ".join(map(str, inside[:3]))}'
        raise LogError(
            f'{path} holds no log, neither */vis_data/scalars.json nor *.log.json; '
            f'{remedy}'
        )
    return found


def _log_in(folder: Path) -> Path | None:
    """The log in a ``vis_data``: the common one, or that named after the start."""
    scalars = folder / 'scalars.json'
    if scalars.is_file():
        return scalars
    if folder.name != 'vis_data':
        return None
    return next(iter(sorted(folder.glob('*.json'))), None)


def read_records(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Read the records of a log.

    Returns:
        The records, and a sentence on the last line where a kill has cut it off, or ''.

    Raises:
        LogError: If it cannot be read, or a line before the last is no record.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise LogError(f'{path} cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise LogError(f'{path} is not a log: it is not text') from error
    lines = text.rstrip('\n').split('\n')
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if records and number == len(lines):
                return records, f'{path}: its last line is cut off and was left out'
            raise LogError(f'{path} is not a log: line {number} is no JSON') from error
        if not isinstance(record, dict):
            raise LogError(f'{path} is not a log: line {number} is no record')
        wrong = [key for key in _PLACES if key in record and not _fits(key, record)]
        if wrong:
            value = f'{wrong[0]} {record[wrong[0]]!r:.60}'
            raise LogError(f'{path} is not a log: line {number} has {value}')
        records.append(record)
    return records, ''


def _is_number(value: Any) -> bool:
    """Whether a value is one that can be drawn; JSON has integers of any length."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) <= _LARGEST


def _fits(key: str, record: Mapping[str, Any]) -> bool:
    """Whether a record is somewhere: at a finite number, or in a mode with a name."""
    value = record[key]
    if key == 'mode':
        return isinstance(value, str)
    return _is_number(value) and abs(value) <= _LAST_PLACE


def _place(
    path: Path, records: Sequence[Mapping[str, Any]], epoch_length: int
) -> tuple[_Log, int]:
    """Find the iteration that each record belongs to.

    Args:
        path: The log.
        records: Its records.
        epoch_length: Iterations of an epoch in the log before, 0 if unknown.

    Returns:
        The log, and the iterations of an epoch, 0 if unknown.
    """
    log = _Log(path)
    training = [record for record in records if _is_training(record)]
    restarts = _counts_within_epochs(training)
    if restarts:
        epoch_length = max(record['iter'] for record in training)
    else:
        # Not every iteration is logged: the closest bound is that of a late epoch.
        bounds = [
            ceil(record['iter'] / record['epoch'])
            for record in training
            if 'mode' not in record and _is_number(record.get('epoch'))
            if record['epoch'] > 0
        ]
        epoch_length = max(bounds, default=epoch_length)
    iteration: float = 0
    epoch: float = 0
    for record in records:
        entries = {k: v for k, v in record.items() if k not in _PLACES}
        if _is_training(record):
            iteration = record['iter']
            epoch = record.get('epoch', 0)
            if restarts:
                iteration += (epoch - 1) * epoch_length
            log.training.append((iteration, entries))
        elif 'mode' in record:
            # Its ``iter`` is the number of images; it follows what it evaluates.
            ends = record.get('epoch', 0) * epoch_length if restarts else 0
            log.validation.append((max(iteration, ends), entries))
        elif _is_number(record.get('step')):
            step = record['step']
            if epoch_length and (step <= epoch or not training):
                step *= epoch_length  # it counts epochs
            log.validation.append((max(iteration, step), entries))
    return log, epoch_length


def _is_training(record: Mapping[str, Any]) -> bool:
    return record.get('mode', 'train') == 'train' and _is_number(record.get('iter'))


def _counts_within_epochs(training: Sequence[Mapping[str, Any]]) -> bool:
    """Whether iterations start anew with each epoch, as in mmcv 1.x's logs."""
    pairs = zip(training, training[1:], strict=False)
    return any(
        a.get('epoch', 0) < b.get('epoch', 0) and a['iter'] >= b['iter']
        for a, b in pairs
    )


def _join(earlier: _Log, later: _Log, notices: list[str]) -> _Log:
    """Put a resumed run in the place of what the earlier one has from there on."""
    first, *others = later.places()
    # A record stands for the iterations since the one before, so the later run starts
    # that much before its first; an evaluation there is still the earlier one's.
    start = first - (others[0] - first) if later.training and others else first - 1
    joined = _Log(
        later.path,
        [entry for entry in earlier.training if entry[0] <= start] + later.training,
        [entry for entry in earlier.validation if entry[0] <= start] + later.validation,
    )
    dropped = len([place for place in earlier.places() if place > start])
    if dropped == len(earlier.places()):
        notices.append(
            f'{later.path} starts anew, so nothing of {earlier.path} is drawn; give '
            'its folder to draw it'
        )
    elif dropped:
        notices.append(
            f'{later.path} goes on after iteration {start:g} and replaces {dropped} '
            'later records of the run before'
        )
    return joined


def _curves(placed: Iterable[tuple[float, Mapping[str, Any]]]) -> Curves:
    curves: Curves = {}
    for place, entries in placed:
        for key, value in entries.items():
            if _is_number(value):
                curves.setdefault(key, []).append((place, value))
    return curves


def _match(key: str, names: Iterable[str]) -> str | None:
    """The name that a key means, None if there is none.

    Raises:
        LogError: If there are several.
    """
    names = list(names)
    if key in names:
        return key
    key = key.lower()
    found = [name for name in names if f'/{name}'.lower().endswith(f'/{key}')]
    if len(found) > 1:
        raise LogError(f'{key} may mean {" or ".join(found)}; give the whole name')
    return found[0] if found else None


def usual_keys(runs: Sequence[Run]) -> list[str]:
    """Keys to draw where none are named: the loss and the commonest metrics.

    A validation with other metrics gives its first.
    """
    keys = [key for key in USUAL_KEYS if any(any(run.find(key)) for run in runs)]
    if keys in ([], ['loss']):
        others = [key for run in runs for key in run.validation if key not in _TIMES]
        keys += [key for key in others if key not in keys][:1]
    return keys or list(runs[0].training)[:1]


def require_keys(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Check that some run has each of the keys.

    Returns:
        A sentence for every run that lacks one.

    Raises:
        LogError: If no run has a key; the message lists those that there are.
    """
    notices = []
    for key in keys:
        lacking = [run for run in runs if not any(run.find(key))]
        if len(lacking) == len(runs):
            known = dict.fromkeys(
                name for run in runs for name in (*run.training, *run.validation)
            )
            raise LogError(f'no run has {key!r}; there are {", ".join(known)}')
        notices += [f'{run.path} has no {key}' for run in lacking]
    return notices


def name_runs(runs: Sequence[Run]) -> list[str]:
    """Short names of runs: the ends of their paths, as long as it takes to differ."""
    paths = [run.path.absolute() for run in runs]
    longest = max(len(path.parts) for path in paths)
    names: list[str] = []
    for length in range(1, longest + 1):
        names = ['/'.join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def best_point(key: str, points: Sequence[Point], validated: bool) -> Point | None:
    """The best of a curve's points, None where neither high nor low is better.

    Args:
        key: What the points are values of.
        points: The points; those that are not finite are left out.
        validated: Whether they come from the validation, whose values are scores.
    """
    name = key.rpartition('/')[2].lower()
    finite = [point for point in points if isfinite(point[1])]
    if not finite or name in _TIMES:
        return None
    if any(part in name for part in _LOWER):
        return min(finite, key=lambda point: point[1])
    if validated or any(part in name for part in _HIGHER):
        return max(finite, key=lambda point: point[1])
    return None


def format_table(runs: Sequence[Run], names: Sequence[str], keys: Sequence[str]) -> str:
    """Last and best value of each key in each run, and where they are.

    A key that a run logs in both has the values of its validation.
    """
    rows = [('run', 'key', 'last', 'at', 'best', 'at')]
    for name, run in zip(names, runs, strict=True):
        for key in keys:
            training, validation = run.find(key)
            points = validation or training
            last = points[-1] if points else None
            best = best_point(key, points, bool(validation))
            rows.append((name, key, *_cells(last), *_cells(best)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            f'{cell:{width}}' if i < 2 else f'{cell:>{width}}'
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append('  '.join(cells).rstrip())
    return '\n'.join(lines)


def _cells(point: Point | None) -> tuple[str, str]:
    return ('-', '-') if point is None else (f'{point[1]:.4g}', f'{point[0]:,.0f}')
