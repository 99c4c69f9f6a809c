"""Small files of trained weights, and what mm's index says of them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from mmengine.config import Config

from camvid_runs import Result, Run, RunError, best_checkpoint, build_model, score
from pelk_mm.analysis.from_config import image_shape
from pelk_mm.checkpoints.files import read_checkpoint, write_checkpoint
from pelk_mm.conversion.notes import plain_meta
from pelk_mm.files import write_atomically
from pelk_mm.version import __version__

#: Most bytes of a file.
MOST_BYTES = 2_000_000
#: By how much the mIoU of the rounded weights may differ, in percentage points.
TOLERANCE = 0.1
WEIGHTS, METAFILE = Path('demo/weights'), Path('configs/examples/metafile.yml')
INDEX = Path('model-index.yml')
LICENSE = 'CamVid (Brostow et al., 2008) is for research; so are weights trained on it.'
_HEADER = '# Written by demo/camvid.py --save-weights; the figures were measured.\n'


def save_weights(run: Run, result: Result, root: Path) -> Path:
    """Write the weights of a run in float16, with an entry in the metafile.

    Args:
        run: The run.
        result: Its record.
        root: Folder of the checkout; the file goes into ``demo/weights`` in it.

    Returns:
        The file.

    Raises:
        RunError: If it would be larger than `MOST_BYTES`, a weight does not fit into
            float16, or the test's mIoU of the rounded weights differs from the run's by
            more than `TOLERANCE`. Nothing is written then.
    """
    source = best_checkpoint(run.folder)
    checkpoint = read_checkpoint(source)
    weights = {name: _half(t, name) for name, t in checkpoint['state_dict'].items()}
    # Without options: the file has to fit the config as it is.
    cfg = replace(run, options={}).load()
    miou = score(build_model(cfg, weights), cfg)[0].mIoU
    if not abs(miou - result.test['mIoU']) <= TOLERANCE:
        raise RunError(
            f'{run.name}: the weights of {source} have {miou:.2f} mIoU in float16 and '
            f'{result.test["mIoU"]:.2f} in float32; more than {TOLERANCE} apart'
        )
    meta = dict(
        config=f'configs/examples/{run.config.name}',
        seed=run.seed,
        iterations=result.iterations,
        test_miou=round(miou, 2),
        license=LICENSE,
        pelk_mm_version=__version__,
        **plain_meta(dict(dataset_meta=checkpoint['meta']['dataset_meta'])),
    )
    folder = root / WEIGHTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{run.name}.pth'
    with TemporaryDirectory(dir=folder, prefix='.') as temporary:
        written = Path(temporary, path.name)
        write_checkpoint(written, weights, meta)
        size = written.stat().st_size
        if size > MOST_BYTES:
            raise RunError(
                f'{path} would have {size:,} bytes, more than {MOST_BYTES:,}; make the '
                'model narrower'
            )
        written.replace(path)
    _describe(cfg, run, result, miou, root)
    return path


def _half(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """A tensor in float16; of integers, the tensor itself.

    Raises:
        RunError: If a value is too large.
    """
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise RunError(f'{name} has values that float16 does not hold')
    return half


def _describe(cfg: Config, run: Run, result: Result, miou: float, root: Path) -> None:
    """Put an entry into the metafile, and the metafile into the index."""
    path = root / METAFILE
    known = yaml.safe_load(path.read_text()) if path.is_file() else {'Models': []}
    models = {entry['Name']: entry for entry in known['Models']}
    models[run.name] = _entry(cfg, run, result, miou)
    entries = {'Models': [models[name] for name in sorted(models)]}
    with write_atomically(path) as temporary:
        temporary.write_text(_HEADER + yaml.safe_dump(entries, sort_keys=False))
    index = root / INDEX
    if METAFILE.as_posix() not in yaml.safe_load(index.read_text())['Import']:
        with write_atomically(index) as temporary:
            text = index.read_text().rstrip('\n')
            temporary.write_text(f'{text}\n  - {METAFILE.as_posix()}\n')


def _entry(cfg: Config, run: Run, result: Result, miou: float) -> Mapping[str, Any]:
    height, width = image_shape(cfg)
    backbone = cfg.model.backbone.type
    metadata = {
        'Training Data': 'CamVid',
        'License': LICENSE,
        'Iterations': result.iterations,
        'Batch Size': cfg.train_dataloader.batch_size,
        'Training Resources': f'{result.threads} threads of a CPU, '
        f'{result.minutes:.0f} minutes',
        'Training Techniques': [cfg.optim_wrapper.optimizer.type],
        'Parameters': result.parameters,
        'FLOPs': result.multiply_adds_paper,
        'Input': f'{height} x {width} (H x W)',
        'Architecture': [backbone, 'UperNet'],
    }
    if result.nonzeros < 0.99 * result.parameters:
        metadata['Non-zero parameters'] = result.nonzeros
    return {
        'Name': run.name,
        'In Collection': backbone,
        'Config': f'configs/examples/{run.config.name}',
        'Metadata': metadata,
        'Results': [
            {
                'Task': 'Semantic Segmentation',
                'Dataset': 'CamVid, test',
                'Metrics': {'mIoU': round(miou, 2)},
            }
        ],
        'Weights': f'{WEIGHTS.as_posix()}/{run.name}.pth',
    }
