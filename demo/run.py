"""The demonstration from end to end: draw scenes, train, score, report."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from config import load_config
from metric import OccurringIoUMetric
from pelk_mm.files import write_atomically
from report import (
    commonest_class,
    draw_curves,
    draw_examples,
    evaluate,
    write_scores,
)
from scenes import write_dataset

MARK = 'demo.json'  # tells a folder of ours from other people's
DATA = 'data/ADEChallengeData2016'
EXAMPLES = 6
SHOWN_TOGETHER = 3
COUNTS = dict(training=480, validation=60)


def claim_folder(folder: Path, settings: Mapping[str, object]) -> None:
    """Make a folder the demonstration's own, without an earlier one's results.

    Args:
        folder: The folder; it is made if there is none.
        settings: What to note in it about this demonstration.

    Raises:
        FileExistsError: If it is a file or holds other things than a demonstration.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f'{folder} is a file; name a folder with --out')
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise FileExistsError(
            f'{folder} holds files that are not from a demonstration (it has no '
            f'{MARK}); name a new or an empty folder with --out'
        )
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / MARK) as temporary:
        temporary.write_text(json.dumps(dict(settings), indent=2) + '\n')
    shutil.rmtree(folder / 'training', ignore_errors=True)
    for name in ('scores.*', 'curves.png', 'example*.png'):
        for old in folder.glob(name):
            old.unlink()


def make_config(
    config: Path, folder: Path, seed: int, iters: int | None, amp: bool = False
) -> Config:
    """Load the demonstration's config and fit it to a folder and a length.

    Args:
        config: The config file.
        folder: The demonstration's folder.
        seed: Seed of the training.
        iters: Number of iterations, 2 or more, or None for the config's own.
        amp: Whether to train in mixed precision, as ``--amp`` of the tools does.
    """
    cfg = load_config(config, folder / 'training', folder / DATA, iters, evaluations=5)
    cfg.randomness = dict(seed=seed)
    if amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    # The config names mmseg's own metric, so that it works without this folder too.
    cfg.val_evaluator.type = cfg.test_evaluator.type = OccurringIoUMetric.__name__
    return cfg


def run_demo(
    config: Path,
    folder: Path,
    seed: int = 0,
    iters: int | None = None,
    counts: Mapping[str, int] = COUNTS,
    amp: bool = False,
) -> str:
    """Run the demonstration and leave everything in one folder.

    Args:
        config: Its config file.
        folder: Where the scenes, the training and the report go.
        seed: Seed of the scenes and of the training.
        iters: Training iterations, or None for the config's own number.
        counts: Number of ``training`` and ``validation`` scenes.
        amp: Whether to train in mixed precision.

    Returns:
        The score table.

    Raises:
        FileExistsError: If the folder is a file or holds other things than a
            demonstration.
    """
    start = time.monotonic()
    cfg = make_config(config, folder, seed, iters, amp)
    iters = cfg.train_cfg.max_iters
    claim_folder(
        folder, dict(seed=seed, iterations=iters, amp=amp, scenes=dict(counts))
    )

    total = sum(counts.values())
    _announce(start, f'1/4 Drawing {total} scenes into {folder / DATA}')
    write_dataset(folder / DATA, seed, dict(counts), progress=_show_progress)

    _announce(start, f'2/4 Training UperNet with a narrow PeLK, {iters} iterations')
    # Tensors this small gain nothing from more threads.
    torch.set_num_threads(min(4, torch.get_num_threads()))
    runner = _quiet_runner(cfg)
    runner.train()

    _announce(start, '3/4 Scoring the validation scenes')
    data = folder / DATA
    constant = commonest_class(sorted(data.glob('annotations/training/*.png')))
    loader = runner.val_dataloader
    scores, constant_scores, examples = evaluate(
        runner.model, loader, constant, EXAMPLES
    )

    _announce(start, f'4/4 Writing the report into {folder}')
    meta = loader.dataset.metainfo
    table = write_scores(folder, scores, constant_scores, meta['classes'][constant])
    scalars = Path(runner.log_dir) / 'vis_data' / 'scalars.json'
    draw_curves(scalars, constant_scores.mIoU, folder / 'curves.png')
    pictures = {f'example_{i}.png': [each] for i, each in enumerate(examples, 1)}
    pictures['examples.png'] = examples[:SHOWN_TOGETHER]
    for name, shown in pictures.items():
        draw_examples(shown, meta['classes'], meta['palette'], folder / name)
    print(f'\n{table}')
    _announce(
        start,
        f'Done: scores.md, curves.png, examples.png and example_*.png are in {folder}',
    )
    return table


def _quiet_runner(cfg: Config) -> Runner:
    """Build the runner without its dump of environment, config and hooks."""
    level = cfg.log_level
    cfg.log_level = 'WARNING'
    runner = Runner.from_cfg(cfg)
    runner.logger.setLevel(level)
    for handler in runner.logger.handlers:
        handler.setLevel(level)
    return runner


def _announce(start: float, message: str) -> None:
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    print(f'[{minutes}:{seconds:02d}] {message}', flush=True)


def _show_progress(done: int, total: int) -> None:
    if done == total or done % -(-total // 5) == 0:
        print(f'  {done} of {total}', flush=True)
