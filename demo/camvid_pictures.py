"""Pictures of runs: curves, predictions next to the truth, receptive fields."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from camvid_runs import (
    Finished,
    Run,
    best_checkpoint,
    best_runs,
    build_model,
    label_maps,
    load_tested,
    predict,
)
from pelk_mm.analysis.log_pictures import draw_runs
from pelk_mm.analysis.logs import read_run
from pelk_mm.analysis.receptive_field import field_key, measure
from pelk_mm.analysis.receptive_field_images import (
    Preprocessing,
    find_pictures,
    samples,
)
from pelk_mm.analysis.receptive_field_picture import (
    Measured,
    draw_fields,
    format_tables,
)
from pelk_mm.checkpoints.files import read_checkpoint
from pelk_mm.files import write_atomically
from report import Example, draw_examples

EXAMPLES = 6
#: Images that receptive fields are measured on, and the side that they have there.
FIELD_IMAGES, FIELD_SIZE = 32, 480


def draw_all(finished: Sequence[Finished], folder: Path) -> None:
    """Draw ``curves.png``, ``examples.png`` and ``erf.png`` of runs into a folder.

    The curves are those of all runs; predictions are the first config's and receptive
    fields each config's, of the run that was the best in validation.

    Args:
        finished: The runs.
        folder: Where the pictures go, and ``erf.md`` with the areas.
    """
    best = list(best_runs(finished).values())
    logs = [read_run(run.folder) for run, _ in finished]
    names = [f'{run.name}, seed {run.seed}' for run, _ in finished]
    with write_atomically(folder / 'curves.png') as temporary:
        draw_runs(logs, names, ['loss', 'mIoU'], temporary, smooth=10)
    _draw_examples(best[0][0], folder / 'examples.png')
    _draw_fields([run for run, _ in best], folder)


def spread_evenly(total: int, count: int) -> list[int]:
    """Numbers of items, from the first to the last, as far apart as possible."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def _draw_examples(run: Run, path: Path) -> None:
    cfg = run.load()
    model = _best_model(run, cfg)
    # Neighbours in the list are pictures of the same place.
    chosen = spread_evenly(len(load_tested(cfg).dataset), EXAMPLES)
    cfg.test_dataloader.dataset.indices = chosen
    loader = load_tested(cfg)
    examples = [
        Example(Path(sample['img_path']), *label_maps(sample))
        for _, shown in predict(model, loader)
        for sample in shown
    ]
    meta = loader.dataset.metainfo
    draw_examples(examples, meta['classes'], meta['palette'], path)


def _draw_fields(runs: Sequence[Run], folder: Path) -> None:
    measured = []
    for run in runs:
        cfg = run.load()
        prefix = cfg.test_dataloader.dataset.data_prefix.img_path
        pictures = find_pictures(run.data / prefix, FIELD_IMAGES)
        pixels = cfg.model.data_preprocessor
        preprocess = Preprocessing(
            rgb=pixels.bgr_to_rgb, mean=tuple(pixels.mean), std=tuple(pixels.std)
        )
        backbone = _best_model(run, cfg).backbone
        key = field_key(backbone, (FIELD_SIZE, FIELD_SIZE), repr(preprocess))
        inputs = samples(pictures, FIELD_SIZE, preprocess, get_device())
        field = measure(backbone, inputs, key)
        measured.append(Measured.of(run.name, f'seed {run.seed}', field))
    with write_atomically(folder / 'erf.png') as temporary:
        draw_fields(measured, temporary)
    with write_atomically(folder / 'erf.md') as temporary:
        temporary.write_text(format_tables(measured) + '\n')


def _best_model(run: Run, cfg: Config) -> nn.Module:
    weights = read_checkpoint(best_checkpoint(run.folder))['state_dict']
    return build_model(cfg, weights)
