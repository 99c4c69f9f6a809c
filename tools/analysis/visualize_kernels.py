"""Draw the large kernels of a PeLK, SLaK or RepLKNet, one page a stage.

Of trained, merged and deployed weights alike: PeLK's sharing grid, positional embedding
and expanded kernels; the stripes of SLaK and the small kernels with their sums; and of
sparse weights the density of every layer and tap. Without a checkpoint the weights are
random.
"""

import argparse
import sys
from pathlib import Path

from pelk_mm_cli import positive


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', nargs='?', help='config of a segmenter, detector or classifier'
    )
    parser.add_argument(
        'checkpoint', nargs='?', type=Path, help='file of the model or its backbone'
    )
    parser.add_argument(
        '--arch', help='instead of a config, such as pelk-tiny-101 or replknet-31B'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('kernels'),
        help='folder of the pages (default: %(default)s)',
    )
    parser.add_argument(
        '--blocks',
        type=positive,
        default=3,
        metavar='N',
        help='how many blocks of a stage to show (default: %(default)s)',
    )
    parser.add_argument(
        '--channels',
        type=positive,
        metavar='N',
        help='how many channels, those of the largest kernels (default: 4, or 2 with '
        'their parts)',
    )
    parser.add_argument(
        '--pdf', action='store_true', help='write kernels.pdf with all pages too'
    )
    args = parser.parse_args()
    if (args.config is None) == (args.arch is None):
        parser.error('give either a CONFIG or --arch')
    return args


def make_folder(path: Path) -> None:
    """Make the folder of the pages.

    Raises:
        ValueError: If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f'{path} cannot be made a folder: {error.strerror}; choose another --out'
        ) from error


def main() -> None:
    """Draw the pages."""
    args = parse_args()
    # After the arguments: a wrong one should not wait for torch to load.
    from pelk_mm.analysis.kernel_pictures import draw_stage, write_pages
    from pelk_mm.analysis.open_backbone import (
        arch_config,
        find_backbone,
        load_backbone,
        random_backbone,
    )
    from pelk_mm.analysis.stage_kernels import stage_kernels
    from pelk_mm.checkpoints.files import write_output
    from pelk_mm.config_types import read_config

    try:
        if args.arch:
            cfg, name, model = arch_config(args.arch), 'backbone', args.arch
        else:
            cfg, name = find_backbone(read_config(args.config))
            model = Path(args.config).stem
        if args.checkpoint:
            backbone = load_backbone(cfg, name, args.checkpoint)
            source = args.checkpoint.name
        else:
            backbone, source = random_backbone(cfg), 'random weights'
        make_folder(args.out)
        pages = []
        for stage in range(len(backbone.stages)):
            title = f'{type(backbone).__name__} of {model}, {source}'
            kernels = stage_kernels(backbone, stage)
            page = draw_stage(kernels, title, args.blocks, args.channels)
            pages.append(page)
            out = args.out / f'stage{stage + 1}.png'
            with write_output(out) as path:
                page.savefig(path, format='png', dpi=110)
            print(out, flush=True)
        if args.pdf:
            with write_output(args.out / 'kernels.pdf') as path:
                write_pages(pages, path)
            print(args.out / 'kernels.pdf')
    except ValueError as error:  # ConfigError and CheckpointError are too
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')


if __name__ == '__main__':
    main()
