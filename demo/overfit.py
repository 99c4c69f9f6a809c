"""Let a narrow PeLK Cascade Mask R-CNN learn a few images of COCO by heart.

A check that training works from the data to the masks, for a CPU and a few minutes.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arguments import number_in
from coco_file import read_annotations, usable_objects

CONFIG = (
    Path(__file__).resolve().parents[1]
    / 'configs/demo/cascade_mask_rcnn_pelk_narrow_overfit.py'
)
ANNOTATIONS = 'annotations/instances_train2017.json'
IMAGES = 'train2017'


def largest_objects(
    objects: Mapping[int, Sequence[Mapping[str, Any]]], count: int
) -> list[int]:
    """Pick the images whose objects are the largest on average.

    Args:
        objects: Objects with ``area`` by the id of their image.
        count: How many images to pick.

    Returns:
        Ids of the images, that of the largest objects first.

    Raises:
        ValueError: If fewer images have objects.
    """
    if not 1 <= count <= len(objects):
        raise ValueError(
            f'{count} images cannot be picked: {len(objects)} have objects'
        )

    def mean_area(image: int) -> float:
        return sum(entry['area'] for entry in objects[image]) / len(objects[image])

    return sorted(objects, key=mean_area, reverse=True)[:count]


def summarize(left_out: Mapping[str, int]) -> str:
    """How many objects are left out and why, to follow a sentence; '' if none are."""
    reasons = ', '.join(f'{number} {why}' for why, number in sorted(left_out.items()))
    return f'; left out: {reasons}' * bool(reasons)


def run_overfit(
    data: Path, folder: Path, count: int, iters: int | None
) -> dict[str, float]:
    """Train on a few images of a COCO data set and evaluate on the same.

    Prints which images, objects and categories are used, and what is left out.

    Args:
        data: The data set, in COCO's directory layout.
        folder: Where the picked annotations and the training go.
        count: How many images to learn.
        iters: Number of iterations, or None for the config's own.

    Returns:
        The metrics of the last evaluation.

    Raises:
        FileNotFoundError: If the data set lacks its annotation file or an image.
        ValueError: If its annotations are not in COCO's format, or too few images have
            objects to train on.
    """
    source = data / ANNOTATIONS
    contents = read_annotations(source)
    objects, left_out = usable_objects(contents)
    names = [category['name'] for category in contents['categories']]
    print(
        f'{source}: {sum(map(len, objects.values()))} objects of {len(names)} '
        f'categories in {len(objects)} images{summarize(left_out)}'
    )
    picked = largest_objects(objects, count)
    images = [image for image in contents['images'] if image['id'] in picked]
    for image in images:
        path = data / IMAGES / image['file_name']
        if not path.is_file():
            raise FileNotFoundError(
                f'{path} does not exist; it is image {image["id"]} of {source}'
            )
    learned = [entry for image in picked for entry in objects[image]]
    used = {entry['category_id'] for entry in learned}
    print(
        f'Learning {len(learned)} objects of {len(used)} categories in {count} images',
        flush=True,
    )
    # Here: a wrong argument should not wait for torch to load.
    from mmengine.runner import Runner

    from config import load_config
    from pelk_mm.engine import set_num_classes
    from pelk_mm.files import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    path = folder.absolute() / 'annotations.json'
    with write_atomically(path) as temporary:
        temporary.write_text(
            json.dumps({**contents, 'images': images, 'annotations': learned})
        )

    cfg = load_config(CONFIG, folder, data, iters, evaluations=1)
    set_num_classes(cfg, len(names))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.ann_file = str(path)
        loader.dataset.metainfo = dict(classes=tuple(names), palette='random')
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
