"""Let a narrow PeLK Cascade Mask R-CNN learn a few images of COCO by heart.

A check that training works from the data to the masks, for a CPU and a few minutes.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from arguments import number_in

CONFIG = (
    Path(__file__).resolve().parents[1]
    / 'configs/demo/cascade_mask_rcnn_pelk_narrow_overfit.py'
)
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
    data: Path, folder: Path, count: int, iters: int | None
) -> dict[str, float]:
    """Train on a few images of a COCO data set and evaluate on the same.

    Args:
        data: The data set, in COCO's directory layout.
        folder: Where the picked annotations and the training go.
        count: How many images to learn.
        iters: Number of iterations, or None for the config's own.

    Returns:
        The metrics of the last evaluation.

    Raises:
        FileNotFoundError: If the data set lacks its annotation file.
        ValueError: If it has too few images with objects.
    """
    source = data / ANNOTATIONS
    if not source.is_file():
        raise FileNotFoundError(
            f'{source} does not exist; name a folder in the layout of COCO with --data'
        )
    picked = largest_objects(json.loads(source.read_text()), count)
    # Here: a wrong argument should not wait for torch to load.
    from mmengine.runner import Runner

    from config import load_config
    from pelk_mm.files import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    path = folder.absolute() / 'annotations.json'
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(picked))

    cfg = load_config(CONFIG, folder, data, iters, evaluations=1)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.ann_file = str(path)
    cfg.train_dataloader.batch_size = min(count, cfg.train_dataloader.batch_size)
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = str(path)
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    metrics = {}
    for name in ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50'):
        # The metric has no scores where nothing is detected at all.
        score = scalars.get(f'val/coco/{name}')
        metrics[name] = float(score.current()) if score else 0.0
    return metrics


def main() -> None:
    """Read the command line, train, and print the scores on the same images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--data', type=Path, default=Path('data/coco'), help='COCO (%(default)s)'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/overfit'),
        help='folder for the training (%(default)s)',
    )
    parser.add_argument(
        '--images',
        type=int,
        default=4,
        help='how many, those of the largest objects first (%(default)s)',
    )
    parser.add_argument(
        '--iters',
        type=number_in(2, 10**6),
        help="training iterations, instead of the config's own number",
    )
    args = parser.parse_args()
    start = time.monotonic()
    try:
        metrics = run_overfit(args.data, args.out, args.images, args.iters)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'overfit.py: {error}')
    minutes = (time.monotonic() - start) / 60
    scores = ', '.join(f'{name} {value:.3f}' for name, value in metrics.items())
    print(f'{args.images} images after {minutes:.1f} minutes: {scores}')


if __name__ == '__main__':
    main()
