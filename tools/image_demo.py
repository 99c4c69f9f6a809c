"""Lay a segmenter's classes, or a detector's boxes and masks, over images or a video.

Of a folder the images in all its subfolders are taken, and the pictures keep their
paths in --out. A pattern in quotes, such as 'photos/**/*.jpg', chooses others. Files
that cannot be read are reported at the end, with exit code 1; the others are done.
"""

import argparse
import sys
from pathlib import Path

from pelk_mm_cli import config_argument


def score(text: str) -> float:
    """A score from the command line."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f'{text} is not a score from 0 to 1')
    return number


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='image, folder of images, pattern, or video')
    parser.add_argument(
        'config', type=config_argument, help='config that the model was trained with'
    )
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument(
        '--out', type=Path, required=True, help='folder for the pictures'
    )
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='bring the backbone into its deployment form first: the same predictions '
        'from fewer modules',
    )
    parser.add_argument(
        '--prepare',
        choices=('float32', 'bfloat16'),
        help='prepare the whole model for inference: --deploy, norms of neck and heads '
        'folded, channels last, and computed in this data type',
    )
    parser.add_argument(
        '--score-thr',
        type=score,
        default=0.3,
        help='least score of the objects that are drawn (%(default)s)',
    )
    parser.add_argument(
        '--cam',
        metavar='LAYER',
        help='also write the class-activation map of a layer (Grad-CAM of segmenters, '
        'Eigen-CAM of detectors); `--cam list` lists the layers',
    )
    parser.add_argument(
        '--cam-class',
        metavar='NAME',
        help='class of the map (default: the one with the most pixels)',
    )
    parser.add_argument(
        '--device', default='cpu', help='such as cuda:0 (default: %(default)s)'
    )
    args = parser.parse_args(argv)
    if args.cam_class is not None and args.cam in (None, 'list'):
        parser.error('--cam-class needs --cam LAYER')
    if args.cam is not None and args.prepare:
        parser.error('--cam needs gradients, which --prepare leaves out')
    return args


def main(argv: list[str] | None = None) -> int:
    """Predict and write the pictures.

    Returns:
        The exit code.
    """
    args = parse_args(argv)
    # After the arguments: a wrong one should not wait for torch to load.
    from pelk_mm.checkpoints.files import CheckpointError
    from pelk_mm.config_types import ConfigError
    from pelk_mm.inference.images import ImageError
    from pelk_mm.inference.models import InferenceError
    from pelk_mm.inference.pictures import show_all

    try:
        problems = show_all(
            args.source,
            args.config,
            args.checkpoint,
            args.out,
            device=args.device,
            deploy=args.deploy,
            threshold=args.score_thr,
            cam=args.cam,
            cam_class=args.cam_class,
            prepare=args.prepare,
        )
    except (ImageError, InferenceError, ConfigError, CheckpointError) as error:
        problems = [str(error)]
    for problem in problems:
        print(f'{Path(sys.argv[0]).name}: {problem}', file=sys.stderr)
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
