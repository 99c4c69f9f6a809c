"""Trainings of configs that differ in the backbone: one run of each, and its record."""

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmseg.evaluation import IoUMetric
from torch import nn

from config import load_config
from object_size import RecallBySize
from pelk_mm.analysis.complexity import checkpoint_density, complexity, total
from pelk_mm.analysis.from_config import image_shape
from pelk_mm.analysis.logs import best_point, read_run
from pelk_mm.checkpoints.files import read_checkpoint
from pelk_mm.files import write_atomically
from report import Scores

#: Validations of a training whose length is not the config's own.
EVALUATIONS = 10
SETTINGS, RESULT = 'run.json', 'result.json'
#: Entries of a config that are where a run is and not what it is.
_PLACES = ('work_dir', 'experiment_name', 'visualizer')


class RunError(ValueError):
    """A run that cannot be started, gone on with, or found."""


@dataclass(frozen=True)
class Run:
    """A training of a config with a seed.

    Attributes:
        config: The config file.
        seed: Seed of the training.
        folder: Where it goes.
        data: Folder of the images.
        iters: Number of iterations, or None for the config's own schedule.
        options: Entries that replace those of the config, by dotted name.
    """

    config: Path
    seed: int
    folder: Path
    data: Path
    iters: int | None
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the config."""
        return self.config.stem

    def load(self) -> Config:
        """Load the config and fit it to the run."""
        cfg = load_config(self.config, self.folder, self.data, self.iters, EVALUATIONS)
        cfg.merge_from_dict(dict(self.options))
        if self.iters is not None:
            # Not at the end alone: an interrupted run goes on from the latest.
            cfg.default_hooks.checkpoint.interval = cfg.train_cfg.val_interval
        cfg.randomness = dict(seed=self.seed)
        name = f'{self.name}_{self.folder.parent.name}_{self.seed}'
        cfg.experiment_name = cfg.visualizer.name = name
        return cfg


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
        config: Name of the config.
        seed: Seed of the training.
        iterations: Its length.
        checkpoint: Name of the file that was tested, the best in validation.
        validation: mIoU of the validation images by the training's log, in percent.
        test: Scores on the test images in percent: ``mIoU``, ``mAcc``, ``aAcc`` and
            ``IoU`` by class.
        recall_by_size: See `object_size.DEFINITION`; by class.
        objects: Number of objects in the test images by class.
        parameters: Parameters of the whole model.
        nonzeros: Those of them that are not zero.
        multiply_adds: Of one test image, as our operators compute.
        multiply_adds_paper: The same, as the papers count: dense kernels, times the
            density.
        seconds_per_iteration: Median over the training's log, loading included.
        minutes: Time of the training and its validations by the log, whether it was
            interrupted or not.
        threads: Threads of the processor that it was trained with.
    """

    config: str
    seed: int
    iterations: int
    checkpoint: str
    validation: float
    test: dict[str, Any]
    recall_by_size: dict[str, list[float]]
    objects: dict[str, int]
    parameters: int
    nonzeros: int
    multiply_adds: int
    multiply_adds_paper: int
    seconds_per_iteration: float
    minutes: float
    threads: int

    @classmethod
    def read(cls, path: Path) -> 'Result':
        """Read the record of a finished run.

        Raises:
            RunError: If it is not one of this version.
        """
        try:
            entries = json.loads(path.read_text())
            return cls(**{each.name: entries[each.name] for each in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f'{path} is no record of a run ({type(error).__name__}: {error}); '
                'delete it, and the run is tested again'
            ) from error


#: A run with its record.
Finished = tuple[Run, Result]


def _digest(cfg: Config, data: Path) -> str:
    """A text that is another if what is trained is."""
    entries = {k: v for k, v in cfg.to_dict().items() if k not in _PLACES}
    text = json.dumps(entries, sort_keys=True, default=str)
    return hashlib.sha256(text.replace(json.dumps(str(data)), '').encode()).hexdigest()


def _claim(run: Run, cfg: Config) -> None:
    """Make the folder the run's own.

    Raises:
        RunError: If it holds a run with other settings, or other things.
    """
    settings = dict(
        config=run.name,
        seed=run.seed,
        iterations=cfg.train_cfg.max_iters,
        options={key: str(value) for key, value in run.options.items()},
        digest=_digest(cfg, run.data),
    )
    mark = run.folder / SETTINGS
    if mark.is_file():
        try:
            old = json.loads(mark.read_text())
        except ValueError:
            old = None
        if old != settings:
            old = old if isinstance(old, dict) else {}
            changed = [key for key in settings if old.get(key) != settings[key]]
            shown = [key for key in changed if key != 'digest'] or ['its config file']
            raise RunError(
                f'{run.folder} holds a run with other settings ({", ".join(shown)}); '
                'name a new folder with --out, or delete it'
            )
    elif run.folder.exists() and (not run.folder.is_dir() or any(run.folder.iterdir())):
        raise RunError(
            f'{run.folder} is not from a run of this script (it has no {SETTINGS}); '
            'name a new folder with --out'
        )
    run.folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(mark) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + '\n')


def _resume(cfg: Config, folder: Path) -> None:
    """Let a training go on from the latest of its own checkpoints, if there is one.

    Where a config starts from weights, mmengine would resume from these instead.
    """
    if any(folder.glob('iter_*.pth')):
        cfg.resume, cfg.load_from = True, None


def _train(run: Run, cfg: Config) -> None:
    """Train in the run's folder, from where an interrupted training was."""
    _resume(cfg, run.folder)
    Runner.from_cfg(cfg).train()


def _pretrain(run: Run, cfg: Config) -> None:
    """Train what a config starts from, if it is not trained, and start from it.

    The config names it by ``pretraining``, a config in the same folder. It has the
    run's seed and length; the run's options are not for it.

    Raises:
        RunError: If the folder of the pre-training holds something else.
    """
    own = replace(
        run,
        config=run.config.parent / cfg.pretraining,
        folder=run.folder / 'pretraining',
        options={},
    )
    settings = own.load()
    _claim(own, settings)
    path = own.folder / f'iter_{settings.train_cfg.max_iters}.pth'
    if not path.is_file():
        _train(own, settings)
    cfg.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(path), prefix='backbone.'
    )


def finish(run: Run) -> Result:
    """Train, or go on with an interrupted training, test, and write the record.

    A finished run is read from its record.

    Raises:
        RunError: If the config is no segmenter, or the folder holds something else.
    """
    cfg = run.load()
    if 'decode_head' not in cfg.model:
        raise RunError(f'{run.config} is not the config of a segmenter')
    _claim(run, cfg)
    record = run.folder / RESULT
    if record.is_file():
        return Result.read(record)
    if 'pretraining' in cfg:
        _pretrain(run, cfg)
    _train(run, cfg)
    result = _test(run, cfg)
    with write_atomically(record) as temporary:
        temporary.write_text(json.dumps(asdict(result), indent=1) + '\n')
    return result


def best_runs(finished: Sequence[Finished]) -> dict[str, Finished]:
    """Of each config the run that was the best in validation."""
    best: dict[str, Finished] = {}
    for run, result in finished:
        if run.name not in best or result.validation > best[run.name][1].validation:
            best[run.name] = run, result
    return best


def best_checkpoint(folder: Path) -> Path:
    """The checkpoint of a training that was the best in validation.

    Raises:
        RunError: If there is none.
    """
    # A killed run may have left the one before: the later one is the better one.
    found = sorted(
        folder.glob('best_mIoU_iter_*.pth'), key=lambda p: int(p.stem.split('_')[-1])
    )
    if not found:
        raise RunError(
            f'{folder} has no best_mIoU_iter_*.pth; the config needs '
            "default_hooks.checkpoint.save_best='mIoU' and a validation"
        )
    return found[-1]


def build_model(cfg: Config, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """Build the model of a config with all of its weights, for testing."""
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.load_state_dict(weights)
    return model.to(get_device()).eval()


@torch.no_grad()
def predict(model: nn.Module, loader: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Predict the images of a loader.

    Yields:
        Each batch, and its samples as dicts with ``gt_sem_seg`` and ``pred_sem_seg``.
    """
    for batch in loader:
        yield batch, [sample.to_dict() for sample in model.test_step(batch)]


def label_maps(sample: Mapping[str, Any]) -> list[np.ndarray]:
    """Ground truth and prediction of a sample of `predict`, (H, W) each."""
    return [
        sample[key]['data'].squeeze().cpu().numpy()
        for key in ('gt_sem_seg', 'pred_sem_seg')
    ]


def load_tested(cfg: Config) -> Any:
    """Loader of a config's test images."""
    init_default_scope(cfg.default_scope)
    return Runner.build_dataloader(cfg.test_dataloader, seed=0)


def score(model: nn.Module, cfg: Config) -> tuple[Scores, RecallBySize]:
    """Score a model on the test images of its config."""
    loader = load_tested(cfg)
    meta = loader.dataset.metainfo
    metric, sizes = IoUMetric(prefix=''), RecallBySize(len(meta['classes']))
    metric.dataset_meta = meta
    for batch, samples in predict(model, loader):
        metric.process(batch, samples)
        for sample in samples:
            sizes.add(*label_maps(sample))
    return Scores.of(metric), sizes


def _test(run: Run, cfg: Config) -> Result:
    path = best_checkpoint(run.folder)
    weights = read_checkpoint(path)['state_dict']
    model = build_model(cfg, weights)
    scores, sizes = score(model, cfg)
    classes = cfg.test_dataloader.dataset.metainfo.classes
    size = total(
        complexity(model, image_shape(cfg), checkpoint_density(weights, model))
    )
    log = read_run(run.folder)
    times = [seconds for _, seconds in log.training['time']]
    # The log has the time of an image, and loops over as many each time.
    validations = [seconds for _, seconds in log.validation['time']]
    images = len(Runner.build_dataloader(cfg.val_dataloader, seed=0).dataset)
    best = best_point('mIoU', log.validation['mIoU'], validated=True)
    assert best is not None  # a best checkpoint was saved
    iterations = cfg.train_cfg.max_iters
    return Result(
        config=run.name,
        seed=run.seed,
        iterations=iterations,
        checkpoint=path.name,
        validation=best[1],
        test=asdict(scores),
        recall_by_size={classes[i]: found for i, found in sizes.recalls().items()},
        objects={classes[i]: number for i, number in sizes.counts().items()},
        parameters=size.parameters,
        nonzeros=round(size.nonzeros),
        multiply_adds=round(size.computed),
        multiply_adds_paper=round(size.paper),
        seconds_per_iteration=statistics.median(times),
        minutes=(statistics.fmean(times) * iterations + sum(validations) * images) / 60,
        threads=torch.get_num_threads(),
    )
