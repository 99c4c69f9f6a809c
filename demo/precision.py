"""Train the demonstration in float32 and in mixed precision, and compare the scores."""

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from arguments import number_in

CONFIG = (
    Path(__file__).resolve().parents[1]
    / 'configs'
    / 'demo'
    / 'upernet_pelk_narrow_drawn_scenes.py'
)
TRAINING, VALIDATION = 480, 60


def halve(cfg) -> tuple[int, int]:
    """Halve the sides of scenes and crops, and the channels of the head.

    Args:
        cfg: The demonstration's config; it is changed in place.

    Returns:
        Height and width of the scenes to draw.
    """
    from pelk_mm.engine import set_crop_size
    from scenes import IMAGE_SIZE

    height, width = (side // 2 for side in IMAGE_SIZE)
    crop = cfg.crop_size[0] // 2
    set_crop_size(cfg, crop, scale=(width, height))
    cfg.model.decode_head.channels //= 2
    return height, width


def emulated() -> bool:
    """Whether products in bfloat16 are computed as other processors compute them."""
    from mmengine.device import get_device

    from pelk_mm.processor import multiplies_bfloat16

    return get_device() == 'cpu' and multiplies_bfloat16() is False


def score(folder: Path, seed: int, iters: int | None, amp: bool, half: bool) -> float:
    """Train once and return the mIoU of the validation scenes, in percent."""
    from mmengine.runner import Runner

    from rounded_products import RoundedProducts
    from run import DATA, make_config
    from scenes import IMAGE_SIZE, write_dataset

    name = 'amp' if amp else 'float32'
    cfg = make_config(CONFIG, folder, seed, iters, amp)
    size = halve(cfg) if half else IMAGE_SIZE
    if not (folder / DATA).is_dir():
        counts = dict(training=TRAINING, validation=VALIDATION)
        write_dataset(folder / DATA, seed, counts, size)
    cfg.train_cfg.val_interval = cfg.train_cfg.max_iters
    cfg.work_dir = str(folder / name)
    cfg.experiment_name = cfg.visualizer.name = f'{folder.name}_{name}'
    runner = Runner.from_cfg(cfg)
    with RoundedProducts() if amp and emulated() else nullcontext():
        runner.train()
    return float(runner.message_hub.get_scalar('val/mIoU').current())


def write_table(scores: dict[int, Sequence[float]]) -> str:
    """Make a table of the scores in float32 and mixed precision by seed."""
    lines = ['| seed | float32 | mixed | difference |', '|---|---|---|---|']
    rows = {str(seed): pair for seed, pair in scores.items()}
    rows['mean'] = [
        statistics.fmean(column) for column in zip(*scores.values(), strict=True)
    ]
    for name, (full, mixed) in rows.items():
        lines.append(f'| {name} | {full:.2f} | {mixed:.2f} | {mixed - full:+.2f} |')
    return '\n'.join(lines)


def main() -> None:
    """Read the command line, train twice per seed, and print a table of mIoU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/precision'),
        help='folder for scenes and trainings (%(default)s)',
    )
    parser.add_argument(
        '--seeds',
        type=number_in(0, 2**32 - 1),
        nargs='+',
        default=[0, 1, 2],
        help='seeds of scenes and training, the same in both precisions (%(default)s)',
    )
    parser.add_argument(
        '--iters',
        type=number_in(10, 10**6),
        help="training iterations, instead of the config's own number",
    )
    parser.add_argument(
        '--half',
        action='store_true',
        help='scenes and crops of half the sides, a head of half the channels',
    )
    args = parser.parse_args()
    if emulated():
        print(
            'This processor has no instructions for bfloat16: products are computed in '
            'float32 from bfloat16 numbers and rounded.',
            flush=True,
        )
    scores = {}
    for seed in args.seeds:
        folder = args.out / f'seed_{seed}'
        if folder.exists():
            sys.exit(f'precision.py: {folder} exists; name a new folder with --out')
        scores[seed] = [
            score(folder, seed, args.iters, amp, args.half) for amp in (False, True)
        ]
        print(write_table(scores), flush=True)


if __name__ == '__main__':
    main()
