"""Measure how many training images one loader process decodes and augments.

Images per second of processor time, of one process without threads, step by step. What
a training needs is its images per second over that: as many loaders in all.
docs/scaling.md quotes it. Photographs of a folder become JPEGs of ImageNet's mean size
for a classifier; other configs read their own data, as --cfg-options name it.

    python benchmarks/loaders.py configs/pretrain/pelk_t_300e_in1k.py --photos FOLDER
    python benchmarks/loaders.py configs/upernet_pelk_t_ade20k.py --cfg-options \
        train_dataloader.dataset.data_root=data/ade/ADEChallengeData2016
"""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config, DictAction
from mmengine.registry import DATASETS, init_default_scope

import pelk_mm  # noqa: F401 - registers what configs name

#: Mean width and height of ImageNet's training images, in whole pixels.
IMAGENET_SIZE = (500, 375)
#: Quality at which they are saved again.
JPEG_QUALITY = 90


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config')
    parser.add_argument('--photos', type=Path, help='folder of JPEGs, for a classifier')
    parser.add_argument(
        '--images', type=int, default=300, help='how many (%(default)s)'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='key=value ...'
    )
    args = parser.parse_args()
    if args.images < 1:
        parser.error(f'--images {args.images} is not positive')
    return args


def as_imagenet(photos: Path, folder: Path) -> None:
    """Save photographs at ImageNet's mean size, in a folder of one class.

    Raises:
        SystemExit: If there are none.
    """
    target = folder / 'train' / 'photo'
    target.mkdir(parents=True)
    paths = sorted(photos.rglob('*.jpg'))
    for number, path in enumerate(paths):
        image = cv2.imread(str(path))
        image = cv2.resize(image, IMAGENET_SIZE, interpolation=cv2.INTER_AREA)
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        cv2.imwrite(str(target / f'{number}.jpg'), image, quality)
    if not paths:
        raise SystemExit(
            f'loaders: {photos} has no *.jpg; name a folder of photographs'
        )


def measure(dataset: Any, images: int) -> tuple[Counter[str], int]:
    """Seconds of processor time in each step, and images that passed."""
    seconds: Counter[str] = Counter()
    done = 0
    for number in range(images):
        sample = dataset.get_data_info(number % len(dataset))
        for step in dataset.pipeline.transforms:
            start = time.process_time()
            sample = step(sample)
            seconds[type(step).__name__] += time.process_time() - start
            if sample is None:  # a crop without objects: a loader draws another image
                break
        done += sample is not None
    return seconds, done


def main() -> None:
    """Measure and print."""
    args = parse_args()
    cv2.setNumThreads(0)
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    init_default_scope(cfg.default_scope)
    with tempfile.TemporaryDirectory() as scratch:
        if args.photos:
            as_imagenet(args.photos, Path(scratch))
            cfg.train_dataloader.dataset.update(
                data_root=scratch, metainfo=dict(classes=('photo',))
            )
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        dataset.full_init()
        np.random.seed(0)
        measure(dataset, min(10, args.images))  # caches and lazy imports
        seconds, done = measure(dataset, args.images)
    whole = sum(seconds.values())
    print(f'{Path(args.config).stem}: {done / whole:.0f} images per second')
    for step, spent in seconds.most_common():
        print(f'  {step:<24}{1000 * spent / done:7.2f} ms  {spent / whole:4.0%}')


if __name__ == '__main__':
    main()
