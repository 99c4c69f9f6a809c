"""Whole models in our forms against other engines, for benchmarks/backbones.py."""

import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pelk_mm.analysis import throughput
from pelk_mm.analysis.engines import OURS, Setting
from pelk_mm.analysis.machine import load
from pelk_mm.analysis.subjects import plan_subjects
from pelk_mm.analysis.workers import ProcessWorker

#: Forms of each rival, of which the better counts.
RIVALS = {
    'torch': ('plain', 'plain_compiled'),
    'onnxruntime': ('onnxruntime', 'onnxruntime_factored'),
    'openvino': ('openvino', 'openvino_factored'),
}


def compare_engines(
    configs: Iterable[Path],
    rivals: Iterable[str],
    setting: Setting,
    whole: bool = False,
    turns: int = 5,
    forms: Iterable[str] = OURS,
) -> dict[str, Any]:
    """Print forms of ours beside those of others, and the best over the best.

    Each form is in a process of its own; its outputs are compared with eager's, and
    printed, before anything is timed, and all take turns then.

    Args:
        configs: Config files.
        rivals: Keys of `RIVALS`.
        setting: Images, data type and threads of all forms.
        whole: Logits of the segmenters, or feature maps of their backbones.
        turns: Timed inferences of each form.
        forms: Those of ours, keys of `engines.ENGINES`.

    Returns:
        Of every model the rows and the ratio, None where no rival could be measured.
    """
    found: dict[str, Any] = {}
    rivals = [form for name in rivals for form in RIVALS[name]]
    part = 'whole' if whole else 'backbone'
    for config in configs:
        options = {'model.backbone.init_cfg': None}
        (subject,) = plan_subjects(str(config), [], part=part, options=options)
        rows = throughput.measure(
            [subject],
            [*forms, *rivals],
            setting,
            ProcessWorker,
            turns,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        print(f'## {throughput.describe_setting(setting, subject)}\n')
        print(throughput.markdown(rows, setting.batch))
        ratio, told = best_ratio(rows, list(rivals))
        print(f'\n{subject.name}: {told}; load {load()}\n', flush=True)
        found[config.stem] = dict(
            rows=throughput.results(rows, setting.batch), ratio=ratio
        )
    return found


def best_ratio(
    rows: Iterable[throughput.Row], rivals: Iterable[str]
) -> tuple[float | None, str]:
    """Time of the best rival over that of the best form of ours.

    Args:
        rows: Of `measure`; those that were not measured do not count.
        rivals: Keys of `engines.ENGINES` that are no form of ours.

    Returns:
        The ratio of the medians, or None, and a sentence.
    """
    measured = [row for row in rows if row.seconds]
    ours = [row for row in measured if row.engine not in rivals]
    theirs = [row for row in measured if row.engine in rivals]
    if not ours or not theirs:
        return None, 'no rival could be measured'
    best, rival = (min(each, key=lambda row: row.median) for each in (ours, theirs))
    ratio = rival.median / best.median
    # Turn by turn, as what else the machine does hits all forms of a turn alike.
    turns = [b / a for a, b in zip(best.seconds, rival.seconds, strict=True)]
    return ratio, (
        f'{best.engine} is {ratio:.2f} times as fast as {rival.engine}, the best of '
        f'the others ({statistics.median(turns):.2f} by the median of the turns)'
    )
