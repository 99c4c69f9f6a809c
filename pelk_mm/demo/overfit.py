"""A detector learns a few images by heart: a check of the whole training path."""

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from pelk_mm.files import write_atomically

ANNOTATIONS = 'annotations/instances_train2017.json'


def largest_objects(annotations: dict[str, Any], count: int) -> dict[str, Any]:
    """Keep the images whose objects are the largest on average.

    Args:
        annotations: Contents of a COCO annotation file.
        count: How many images to keep.

    Returns:
        The contents with these images and their objects alone, crowds left out.

    Raises:
        ValueError: If fewer images have objects.
    """
    objects = defaultdict(list)
    for entry in annotations['annotations']:
        if not entry.get('iscrowd'):
            objects[entry['image_id']].append(entry)
    if not 1 <= count <= len(objects):
        raise ValueError(
            f'{count} images cannot be picked: {len(objects)} have objects'
        )

    def mean_area(image: int) -> float:
        return sum(entry['area'] for entry in objects[image]) / len(objects[image])

    picked = sorted(objects, key=mean_area, reverse=True)[:count]
    return {
        **annotations,
        'images': [i for i in annotations['images'] if i['id'] in picked],
        'annotations': [entry for image in picked for entry in objects[image]],
    }


def run_overfit(
    config: Path, data: Path, folder: Path, count: int = 4, iters: int | None = None
) -> dict[str, float]:
    """Train on a few images of a COCO data set and evaluate on the same.

    Args:
        config: The config file.
        data: The data set, in COCO's directory layout.
        folder: Where the picked annotations and the training go.
        count: How many images to learn.
        iters: Number of iterations, or None for the config's own.

    Returns:
        The metrics of the last evaluation, and the minutes that all took.

    Raises:
        FileNotFoundError: If the data set lacks its annotation file.
        ValueError: If it has too few images with objects.
    """
    source = data / ANNOTATIONS
    if not source.is_file():
        raise FileNotFoundError(
            f'{source} does not exist; name a folder in the layout of COCO with --data'
        )
    start = time.monotonic()
    picked = largest_objects(json.loads(source.read_text()), count)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.absolute() / 'annotations.json'
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(picked))

    cfg = Config.fromfile(config)
    cfg.work_dir = str(folder)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(data)
        loader.dataset.ann_file = str(path)
    cfg.train_dataloader.batch_size = min(count, cfg.train_dataloader.batch_size)
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = str(path)
    if iters is not None:
        warm_up, decay = cfg.param_scheduler
        warm_up.end = decay.begin = min(warm_up.end, iters // 2)
        decay.end = cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = iters
        cfg.default_hooks.checkpoint.interval = iters
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    metrics = {}
    for name in ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50'):
        # The metric has no scores where nothing is detected at all.
        score = scalars.get(f'val/coco/{name}')
        metrics[name] = float(score.current()) if score else 0.0
    return {**metrics, 'minutes': (time.monotonic() - start) / 60}
