"""Write configs/*_metafile.yml: what mm's index says of every config.

A metafile describes one collection, a paper's models; `model-index.yml` names them.
Parameters and FLOPs are counted on the meta device as the papers count; accuracies are
the papers' and say so; everything else comes from the configs. It serves a checkout: a
wheel's copies are written already.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from pelk_mm.analysis.complexity import (
    PAPER_SPARSITY,
    complexity,
    paper_sparsity,
    total,
    uniform_density,
)
from pelk_mm.analysis.from_config import build_on_meta, image_shape
from pelk_mm.analysis.paper_table import TABLES
from pelk_mm.files import write_atomically
from pelk_mm_cli import config_folder

HEADER = (
    '# Written by tools/analysis/metafiles.py. Accuracies marked (paper) are the '
    "paper's;\n# we have not trained these models.\n"
)

COLLECTIONS: dict[str, dict[str, Any]] = {
    name: {
        'Name': name,
        'Paper': {'Title': title, 'URL': f'https://arxiv.org/abs/{number}'},
        'Metadata': {'Architecture': [idea]},
        'README': 'docs/model_zoo.md',
        'Code': {'URL': f'pelk_mm/backbones/{name.lower()}.py'},
    }
    for name, title, number, idea in (
        (
            'PeLK',
            'PeLK: Parameter-efficient Large Kernel ConvNet with Peripheral '
            'Convolution',
            '2403.07589',
            'Peripheral Convolution',
        ),
        (
            'SLaK',
            'More ConvNets in the 2020s: Scaling up Kernels Beyond 51x51 using '
            'Sparsity',
            '2207.03620',
            'Decomposed Sparse Large Kernels',
        ),
        (
            'RepLKNet',
            'Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs',
            '2203.06717',
            'Re-parameterised Large Kernels',
        ),
    )
}

DATASETS = {
    'ADE20KDataset': 'ADE20K',
    'CityscapesDataset': 'Cityscapes',
    'CocoDataset': 'COCO',
}
HEADS = {
    'EncoderDecoder': 'UperNet',
    'CascadeRCNN': 'Cascade Mask R-CNN',
    'FCOS': 'FCOS',
}
#: Tasks and metrics of a paper's results, in the order of `Row.results`.
METRICS = {
    'mmseg': [('Semantic Segmentation', 'mIoU')],
    'mmdet': [('Object Detection', 'box AP'), ('Instance Segmentation', 'mask AP')],
}

#: The papers' accuracies by the name of our config.
RESULTS = {
    row.source: row.results
    for rows in TABLES.values()
    for row in rows
    if isinstance(row.source, str)
}
# SLaK's table of COCO gives no parameters and no FLOPs of this one.
RESULTS['cascade_mask_rcnn_slak_t_coco'] = '51.3 / 44.3'


class _Dumper(yaml.SafeDumper):
    """Indents the entries of a list, as metafiles have them."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def count(cfg: Config) -> tuple[int, int]:
    """Parameters that are not zero and multiply-adds, counted as the papers count."""
    model = build_on_meta(cfg)
    density = uniform_density(paper_sparsity(model))
    size = total(complexity(model, image_shape(cfg), density))
    return round(size.nonzeros), round(size.paper)


def describe(path: Path, parameters: int, flops: int) -> dict[str, Any]:
    """A config's entry under ``Models``.

    Args:
        path: The config.
        parameters: Parameters, as `count` gives them.
        flops: Multiply-adds, the same.
    """
    cfg = Config.fromfile(path)
    backbone = cfg.model.backbone.type
    dataset = DATASETS[cfg.train_dataloader.dataset.type]
    height, width = image_shape(cfg)
    unit = {'max_iters': 'Iterations', 'max_epochs': 'Epochs'}
    batch, images = cfg.auto_scale_lr.base_batch_size, cfg.train_dataloader.batch_size
    metadata: dict[str, Any] = {
        'Training Data': dataset,
        **{unit[key]: cfg.train_cfg[key] for key in unit if key in cfg.train_cfg},
        'Batch Size': batch,
        'Training Resources': f'{batch // images} GPUs x {images} images',
        'Training Techniques': [cfg.optim_wrapper.optimizer.type],
        'Parameters': parameters,
        'FLOPs': flops,
        'Input': f'{height} x {width} (H x W)',
    }
    if backbone in PAPER_SPARSITY:
        metadata['Sparsity'] = PAPER_SPARSITY[backbone]
    metadata['Architecture'] = [backbone, HEADS[cfg.model.type]]
    entry = {
        'Name': path.stem,
        'In Collection': backbone,
        'Config': f'configs/{path.name}',
        'Metadata': metadata,
    }
    if path.stem in RESULTS:
        values = RESULTS[path.stem].split(' / ')
        entry['Results'] = [
            {
                'Task': task,
                'Dataset': dataset,
                'Metrics': {f'{metric} (paper)': float(value)},
            }
            for (task, metric), value in zip(
                METRICS[cfg.default_scope], values, strict=False
            )
            if value != '-'
        ]
    return entry


def metafile_path(collection: str, configs: Path) -> Path:
    """Path of a collection's metafile in the folder of our configs."""
    return configs / f'{collection.lower()}_metafile.yml'


def format_metafile(collection: str, models: list[dict[str, Any]]) -> str:
    """Text of a metafile.

    Args:
        collection: A key of `COLLECTIONS`.
        models: Its models' entries, as `describe` gives them.
    """
    parts = [{'Collections': [COLLECTIONS[collection]]}, {'Models': models}]
    texts = [yaml.dump(p, Dumper=_Dumper, sort_keys=False, width=88) for p in parts]
    return HEADER + '\n'.join(texts)


def format_metafiles(configs: Path) -> Iterator[tuple[Path, str]]:
    """Paths and current texts of all metafiles.

    Args:
        configs: Folder of our configs.
    """
    models: dict[str, list[dict[str, Any]]] = {name: [] for name in COLLECTIONS}
    for path in sorted(configs.glob('*.py')):
        entry = describe(path, *count(Config.fromfile(path)))
        models[entry['In Collection']].append(entry)
    for collection, entries in models.items():
        text = format_metafile(collection, entries)
        yield metafile_path(collection, configs), text


def write_metafiles(configs: Path) -> None:
    """Write all metafiles into the folder of our configs."""
    for path, text in format_metafiles(configs):
        with write_atomically(path) as temporary:
            temporary.write_text(text)


def main() -> None:
    """Count and write."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    write_metafiles(config_folder())


if __name__ == '__main__':
    main()
