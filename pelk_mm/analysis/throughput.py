"""How many images a second a model computes, form beside form.

Every form computes the same images with the same weights in turns, one inference each,
so that whatever else the machine does hits all alike. Results come before times: a form
whose outputs differ from the eager model's is not timed.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pelk_mm.ops.problem import dtype_name
from pelk_mm.processor import multiplies_bfloat16

from .engines import ENGINES, OURS, Setting, why_not_installed
from .subjects import Subject, UnavailableError
from .turns import collect_turns
from .workers import Form, OpenWorker, Ready, Worker, explain

#: Largest difference to eager, over the largest value of an output, with and without
#: autocast; rounding stays below, an error of folding or exporting does not.
TOLERANCE, AMP_TOLERANCE = 1e-3, 0.1

#: Told of what happens, in a sentence.
Say = Callable[[str], None]


class NothingMeasuredError(RuntimeError):
    """No form could be measured."""


@dataclass
class Row:
    """What was found of a form.

    Attributes:
        model: Name of the model.
        engine: Key of `ENGINES`.
        difference: Largest difference of an output to the eager model's, over the
            output's largest value; None where there is nothing to compare.
        ready: Seconds to load, compile and compute once.
        seconds: Those of each inference that counts.
        memory: Most bytes held, weights included; None if unknown.
        problem: Why it was not measured.
    """

    model: str
    engine: str
    difference: float | None = None
    ready: float | None = None
    seconds: list[float] = field(default_factory=list)
    memory: int | None = None
    problem: str | None = None

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def percentile_95(self) -> float:
        """Seconds that 95 % of the inferences do not exceed."""
        if len(self.seconds) < 2:
            return self.seconds[0]
        return statistics.quantiles(self.seconds, n=20, method='inclusive')[-1]


def measure(
    subjects: Sequence[Subject],
    engines: Sequence[str],
    setting: Setting,
    open_worker: OpenWorker,
    turns: int = 20,
    seconds: float = 0.0,
    say: Say = lambda text: None,
) -> list[Row]:
    """Measure every form of every subject.

    Args:
        subjects: The models; ratios refer to the first.
        engines: Keys of `ENGINES`. 'eager' is measured first whether it is among them
            or not, as everything else is compared with it.
        setting: What all forms have alike.
        open_worker: What runs a form.
        turns: Least number of inferences of each form that count.
        seconds: Time to spend on them altogether, about.
        say: Told what happens.

    Returns:
        A row for each form. One that cannot be measured says why.

    Raises:
        NothingMeasuredError: If none could be measured.
    """
    names = [name for name in ENGINES if name == 'eager' or name in engines]
    planned = [
        (subject, engine)
        for subject in subjects
        for engine in names
        if subject.competitor is None or engine not in OURS
    ]
    rows: list[Row] = []
    with ExitStack() as stack:
        parent = Path(stack.enter_context(TemporaryDirectory()))
        workers: dict[int, Worker] = {}
        eager: Ready | None = None
        for number, (subject, engine) in enumerate(planned):
            if subject.competitor and engine != 'eager' and eager is None:
                continue  # it is not installed, or as good as not
            say(f'{number + 1} of {len(planned)}: {subject.name}, {engine}')
            row = Row(subject.name, engine)
            rows.append(row)
            folder = parent / str(number)
            folder.mkdir()
            form = Form(subject, engine, setting, folder)
            if engine == 'eager':
                eager = None
            with ExitStack() as inner:  # closes what will not be timed
                try:
                    worker, ready = _prepare(form, row, eager, open_worker, inner)
                except UnavailableError as error:
                    row.problem = str(error)
                    say(f'  not measured: {row.problem}')
                    continue
                stack.push(inner.pop_all())
            workers[len(rows) - 1] = worker
            if engine == 'eager':
                eager = ready
            if row.difference is not None:
                say(f'  differs from eager by {row.difference:.1e} at most')
        _time(rows, workers, turns, seconds, say)
    if all(row.problem for row in rows):
        raise NothingMeasuredError(
            'nothing could be measured: '
            + '; '.join(f'{row.model}, {row.engine}: {row.problem}' for row in rows)
        )
    return rows


def _prepare(
    form: Form,
    row: Row,
    eager: Ready | None,
    open_worker: OpenWorker,
    stack: ExitStack,
) -> tuple[Worker, Ready]:
    """Open a form's worker and hold its outputs to those of eager.

    Raises:
        UnavailableError: If it cannot run here, or its outputs are wrong.
    """
    reason = why_not_installed(form.engine)
    if reason is not None:
        raise UnavailableError(reason)
    try:
        if ENGINES[form.engine].exported:
            with closing(open_worker(form)) as exporter:
                exporter.export()
        worker = stack.enter_context(closing(open_worker(form)))
        ready = worker.prepare()
    except UnavailableError:
        raise
    # Whatever a compiler or a runtime raises in this process: the others can run.
    except Exception as error:
        raise UnavailableError(explain(error)) from error
    row.ready = ready.seconds
    if not all(np.isfinite(output).all() for output in ready.outputs):
        raise UnavailableError('its outputs are not finite')
    if eager is not None:
        row.difference = _compare(ready.outputs, eager.outputs, form.setting.amp)
    return worker, ready


def _compare(
    outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray], amp: bool
) -> float:
    """Largest difference between outputs, over the largest value of each.

    Raises:
        UnavailableError: If it is larger than rounding makes it.
    """
    shapes, expected_shapes = ([each.shape for each in x] for x in (outputs, expected))
    if shapes != expected_shapes:
        raise UnavailableError(
            f'its outputs have the shapes {shapes} instead of {expected_shapes}'
        )
    difference = 0.0
    for output, right in zip(outputs, expected, strict=True):
        if right.size:
            tiny = float(np.finfo(np.float32).tiny)
            largest = max(float(np.abs(right).max()), tiny)
            found = float(np.abs(output - right).max()) / largest
            difference = max(difference, found)
    bound = AMP_TOLERANCE if amp else TOLERANCE
    if difference > bound:
        raise UnavailableError(
            f'its results are wrong: they differ from those of eager by '
            f'{difference:.1e} of the largest, more than {bound:.0e}'
        )
    return difference


def _time(
    rows: Sequence[Row],
    workers: Mapping[int, Worker],
    turns: int,
    seconds: float,
    say: Say,
) -> None:
    """Run workers in turns and note in the rows what they took."""

    def run(number: int) -> float:
        row = rows[number]
        if row.problem is None:
            try:
                return workers[number].run()
            except Exception as error:  # as above
                row.problem = explain(error)
                say(f'{row.model}, {row.engine}, not measured: {row.problem}')
        if all(rows[each].problem for each in workers):
            raise NothingMeasuredError(f'{row.model}, {row.engine}: {row.problem}')
        return math.nan

    works = {number: partial(run, number) for number in workers}
    if not works:
        return
    say(f'{len(works)} forms in turns, {turns} times or more')
    times = collect_turns(works, seconds, turns, say)
    for number, taken in times.items():
        row = rows[number]
        if row.problem is None:
            row.seconds = taken
            with suppress(UnavailableError):  # it is unknown if the process is gone
                row.memory = workers[number].peak_memory()


# ------------------------------------------------------------------ reports


def results(rows: Sequence[Row], batch: int) -> list[dict[str, Any]]:
    """Rows with the figures of the table, for a JSON file."""
    return [
        asdict(row)
        | (
            dict(
                images_per_second=batch / row.median,
                median=row.median,
                percentile_95=row.percentile_95,
            )
            if row.seconds
            else {}
        )
        for row in rows
    ]


def describe_setting(setting: Setting, subject: Subject) -> str:
    """Say in one line what is computed."""
    height, width = setting.shape
    dtype = dtype_name(setting.dtype)
    words = [
        'whole model' if subject.part == 'whole' else 'backbone and neck, if any',
        f'{setting.batch} x {subject.channels} x {height} x {width}',
        f'autocast to {dtype}' if setting.amp else dtype,
        *['channels_last'] * setting.channels_last,
        *['compiled and exported as trained'] * setting.as_trained,
        subject.checkpoint or 'random weights',
    ]
    return ', '.join(words)


def caveats(setting: Setting, subject: Subject, cfg: Any) -> Iterator[str]:
    """Sentences on what makes the times other than a reader may expect.

    Args:
        setting: What all forms have alike.
        subject: The model.
        cfg: Its config.
    """
    if setting.amp and setting.device == 'cpu' and multiplies_bfloat16() is False:
        yield (
            'this processor has no instructions for bfloat16; --amp then takes longer '
            'than float32'
        )
    if setting.device == 'cpu' and setting.threads == 1:
        yield (
            'times on one thread are those for which it had a processor: other '
            'programs do not count'
        )
    if subject.predicts(cfg) and subject.checkpoint is None:
        yield (
            'random weights find few objects, so the heads have less to compute than '
            'they will; --checkpoint gives trained ones'
        )


def _base(rows: Sequence[Row]) -> Row:
    """The first row that was measured, which ratios refer to."""
    return next(row for row in rows if row.seconds)


def markdown(rows: Sequence[Row], batch: int) -> str:
    """Write rows as a table; the ratio is to the first that was measured."""
    head = ['model', 'form', 'difference', 'images/s', 'ratio', 'median, ms']
    head += ['95 %, ms', 'memory, MiB']
    remarks = any(row.problem for row in rows)
    lines = [[*head, *['remark'] * remarks], ['---'] * (len(head) + remarks)]
    base = _base(rows).median
    for row in rows:
        difference = '' if row.difference is None else f'{row.difference:.1e}'
        figures = [''] * 5
        if row.seconds:
            figures = [
                f'{batch / row.median:.4g}',
                f'{base / row.median:.2f}',
                f'{1e3 * row.median:.4g}',
                f'{1e3 * row.percentile_95:.4g}',
                'unknown' if row.memory is None else f'{row.memory / 2**20:.0f}',
            ]
        lines.append([row.model, row.engine, difference, *figures])
        if remarks:
            lines[-1].append((row.problem or '').replace('|', '\\|'))
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def report(
    rows: Sequence[Row],
    setting: Setting,
    subject: Subject,
    machine: Mapping[str, object],
) -> str:
    """Write what was computed, where, the table and what its columns mean."""
    owner = "torch's allocator" if setting.device == 'cuda' else 'its process'
    first = _base(rows)
    where = ', '.join(f'{key}: {value}' for key, value in machine.items())
    return '\n'.join(
        (
            f'# {describe_setting(setting, subject)}',
            f'# {where}',
            '',
            markdown(rows, setting.batch),
            '',
            "Difference: the largest to eager, over the output's largest value.",
            f'Images/s: a batch over the median of {len(first.seconds)} inferences, '
            'all forms in turns.',
            f'Ratio: images/s over those of {first.model}, {first.engine}.',
            f'Memory: the most that {owner} held in an inference, weights included,',
            'beyond what it held before the model was loaded.',
        )
    )
