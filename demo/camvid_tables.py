"""Tables of runs: by config, by class and by the size of objects."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from camvid_runs import Result
from object_size import DEFINITION, SIZES
from pelk_mm.files import write_atomically

ROW = '| {} |'.format

RULE = (
    'mIoU, IoU and recall in percent, on the test images, of the checkpoint that was '
    'the best in validation (the moving average of the weights). Mean over the runs of '
    'a config, with the lowest and the highest in brackets.'
)


def by_config(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results of each config, in the order in which configs first occur."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.config, []).append(result)
    return groups


def _spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean of values and, where there are several, the lowest and the highest."""
    text = f'{statistics.fmean(values):.{digits}f}'
    if len(values) > 1:
        text += f' ({min(values):.{digits}f} to {max(values):.{digits}f})'
    return text


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, numbers to the right."""
    lines = [ROW(' | '.join(head)), f'|---|{"--:|" * (len(head) - 1)}']
    return lines + [ROW(' | '.join(row)) for row in rows]


def _summary(results: Iterable[Result]) -> list[str]:
    head = (
        'config',
        'runs',
        'test mIoU',
        'validation mIoU',
        'parameters',
        'not zero',
        'multiply-adds',
        'as the papers count',
        's per iteration',
        'minutes',
    )
    columns: list[Callable[[list[Result]], str]] = [
        lambda runs: str(len(runs)),
        lambda runs: _spread([run.test['mIoU'] for run in runs]),
        lambda runs: _spread([run.validation for run in runs]),
        lambda runs: f'{runs[0].parameters / 1e6:.3f} M',
        lambda runs: f'{statistics.fmean(r.nonzeros for r in runs) / 1e6:.3f} M',
        lambda runs: f'{runs[0].multiply_adds / 1e9:.2f} G',
        lambda runs: (
            f'{statistics.fmean(r.multiply_adds_paper for r in runs) / 1e9:.2f} G'
        ),
        lambda runs: _spread([run.seconds_per_iteration for run in runs], 2),
        lambda runs: _spread([run.minutes for run in runs], 0),
    ]
    rows = [
        [name, *(column(runs) for column in columns)]
        for name, runs in by_config(results).items()
    ]
    return _table(head, rows)


def _classes(results: Sequence[Result]) -> list[str]:
    names = list(dict.fromkeys(name for run in results for name in run.test['IoU']))
    rows = [
        [
            config,
            *(
                _spread(
                    [run.test['IoU'][name] for run in runs if name in run.test['IoU']]
                )
                for name in names
            ),
        ]
        for config, runs in by_config(results).items()
    ]
    return _table(('config', *names), rows)


def _sizes(results: Sequence[Result]) -> list[str]:
    def recall(run: Result, size: int) -> float:
        return statistics.fmean(found[size] for found in run.recall_by_size.values())

    rows = [
        [name, *(_spread([recall(run, i) for run in runs]) for i in range(len(SIZES)))]
        for name, runs in by_config(results).items()
    ]
    return _table(('config', *SIZES), rows)


def format_tables(results: Sequence[Result]) -> str:
    """Lay out the results of several runs as Markdown."""
    threads = sorted({run.threads for run in results})
    iterations = sorted({run.iterations for run in results})
    lines = [
        RULE,
        '',
        *_summary(results),
        '',
        f'{" or ".join(map(str, iterations))} iterations, '
        f'{" or ".join(map(str, threads))} threads. Parameters and multiply-adds are '
        'those of the whole model on one test image.',
        '',
        'IoU by class:',
        '',
        *_classes(results),
        '',
        f'Recall by the size of objects. {DEFINITION}',
        '',
        *_sizes(results),
    ]
    return '\n'.join(lines) + '\n'


def write_tables(folder: Path, results: Sequence[Result]) -> str:
    """Write ``results.md`` and ``results.json`` into a folder; returns the tables."""
    tables = format_tables(results)
    records = json.dumps([asdict(result) for result in results], indent=1)
    for name, text in (('results.md', tables), ('results.json', records + '\n')):
        with write_atomically(folder / name) as temporary:
            temporary.write_text(text)
    return tables
