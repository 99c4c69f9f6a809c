"""Check a config's whole data set before hours of training depend on it."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..launch import LaunchError, require_data_roots, require_framework
from .findings import Finding
from .reading import Sample, SampleReader, find_duplicates
from .splits import SPLITS, Part, open_split
from .workers import WorkerDiedError, run_in_processes

#: Passes items on while it shows a description and how many of a total have passed.
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass
class SplitReport:
    """What was found in a split.

    Attributes:
        name: Name of the split.
        same_as: The split that has the same data set and was read instead, or ''.
        kinds: Classes of its data sets.
        images: Number of images.
        sizes: Least and greatest width and height of those that could be read.
        unit: What `counts` counts: ``pixels``, ``objects`` or ``images``.
        counts: By class.
        images_with: Images that have the class.
        ignored: Pixels or objects that are ignored.
        findings: What is wrong.
    """

    name: str
    same_as: str = ''
    kinds: list[str] = field(default_factory=list)
    images: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    unit: str = 'pixels'
    counts: Counter[str] = field(default_factory=Counter)
    images_with: Counter[str] = field(default_factory=Counter)
    ignored: int = 0
    findings: list[Finding] = field(default_factory=list)


def _no_track(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    return items


def check_dataset(
    cfg: Config,
    splits: Sequence[str] = (),
    workers: int = 0,
    track: Track = _no_track,
) -> list[SplitReport]:
    """Read every image and annotation of a config's data sets and report what is wrong.

    They are read by the steps of each pipeline that load, as in training, one at a time
    in each process.

    Args:
        cfg: The config.
        splits: Some of `SPLITS`; by default those that the config has.
        workers: Processes that read; 0 for this one.
        track: Shows progress.

    Raises:
        LaunchError: If the config has no framework or lacks a split, or the folder of a
            data set does not exist.
    """
    init_default_scope(require_framework(cfg))
    named = [s for s in SPLITS if cfg.get(f'{s}_dataloader') is not None]
    chosen = [s for s in SPLITS if s in splits] if splits else named
    missing = [s for s in chosen if s not in named]
    if missing or not named:
        lacks = ', '.join(f'{s}_dataloader' for s in missing or SPLITS)
        raise LaunchError(f'{cfg.filename} has no {lacks}')
    require_data_roots(cfg, tuple(f'{s}_dataloader' for s in chosen))
    reports: list[SplitReport] = []
    samples: dict[str, list[Sample]] = {}
    for name in chosen:
        data_set = cfg[f'{name}_dataloader']['dataset']
        twin = next((s for s in samples if _data_set(cfg, s) == data_set), '')
        if twin and (twin != 'train'):
            reports.append(SplitReport(name, same_as=twin))
            continue
        report, samples[name] = _check_split(cfg, name, workers, track)
        reports.append(report)
    by_name = {report.name: report for report in reports}
    for name, finding in find_duplicates(samples):
        by_name[name].findings.append(finding)
    return reports


def _data_set(cfg: Config, split: str) -> Any:
    return cfg[f'{split}_dataloader']['dataset']


def _check_split(
    cfg: Config, name: str, workers: int, track: Track
) -> tuple[SplitReport, list[Sample]]:
    report, samples = SplitReport(name), []
    parts = open_split(cfg, name)
    for part in parts:
        report.kinds.append(part.kind)
        report.findings += part.findings
        if part.dataset is not None:
            read = _read(part, name, workers, track)
            samples += read
            _count(report, part, read)
    # Where nothing was opened, nothing is known of the classes.
    if samples:
        names = dict.fromkeys(c for part in parts for c in part.classes or ())
        never = [label for label in names if not report.counts[label]]
        # A test set may have no annotations at all.
        if never and any(report.counts.values()):
            listed = ', '.join(map(repr, never[:20])) + ', ...' * (len(never) > 20)
            detail = f'{len(never)} of {len(names)}: {listed}'
            place = f'{name}_dataloader.dataset'
            report.findings.append(Finding('never', place, detail))
    sizes = [sample.size for sample in samples if sample.size]
    if sizes:
        widths, heights = zip(*sizes, strict=True)
        report.sizes = [(min(widths), min(heights)), (max(widths), max(heights))]
    return report, samples


def _read(part: Part, split: str, workers: int, track: Track) -> list[Sample]:
    """Read all samples of a data set, in its order."""
    total = len(part.dataset)
    samples: dict[int, Sample] = {}
    results = run_in_processes(
        SampleReader(part.dataset, part.expected), total, workers
    )
    for number, result in track(results, split, total):
        if isinstance(result, WorkerDiedError):
            path = str(part.dataset.get_data_info(number).get('img_path', number))
            result = Sample(path, findings=[Finding('reader_died', path)])
        samples[number] = result
    return [samples[number] for number in sorted(samples)]


def _count(report: SplitReport, part: Part, samples: list[Sample]) -> None:
    """Add the samples of a data set to a report."""
    report.images += len(samples)
    info = part.dataset.get_data_info(0)
    report.unit = 'pixels' if info.get('seg_map_path') else 'objects'
    if 'gt_label' in info:
        report.unit = 'images'
    elif 'instances' in info:
        report.unit = 'objects'
    names = part.classes or ()
    for name in names:
        report.counts[name] += 0
    for sample in samples:
        report.findings += sample.findings
        report.ignored += sample.ignored
        for label, count in sample.labels.items():
            name = names[label] if label < len(names) else f'label {label}'
            report.counts[name] += count
            report.images_with[name] += 1
