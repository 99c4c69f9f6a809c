"""Write a trained model as ONNX and verify it with onnxruntime.

Of a segmenter it is all of it, from normalised images to logits of their size; of a
detector backbone and neck. A program that torch.export.save has written, in a file
ending in .pt2, is taken instead of CONFIG and CHECKPOINT. OUT appears only after
onnxruntime has reproduced torch's values on random images of three sizes.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from pelk_mm_cli import resolve_config

PROGRAM_SUFFIX = '.pt2'


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage='%(prog)s [-h] CONFIG CHECKPOINT OUT.onnx [--shape H W] [--dynamic] '
        '[--deploy] [--factored] [--fp16] [--normalise] [--force]\n'
        '       %(prog)s PROGRAM.pt2 OUT.onnx [--fp16] [--force]',
    )
    parser.add_argument(
        'files',
        nargs='+',
        metavar='FILE',
        help='config, its checkpoint and the file to write; or a program and the file',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='height and width of the images (default: the window of a segmenter that '
        'is tested with a sliding one, else the scale of the test images)',
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='leave batch, height and width open; SHAPE is one of the sizes verified',
    )
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='fold norms, small kernels and layer scales first',
    )
    parser.add_argument(
        '--factored',
        action='store_true',
        help='write peripheral convolutions as box sums, several times faster in '
        'onnxruntime and OpenVINO on CPUs; folds as --deploy does',
    )
    parser.add_argument(
        '--fp16',
        action='store_true',
        help='weights and sums in float16; inputs and outputs stay float32',
    )
    parser.add_argument(
        '--normalise',
        action='store_true',
        help="put the data preprocessor's order of channels, mean and std into the "
        'graph, which then takes images as they are loaded (0 to 255)',
    )
    parser.add_argument('--force', action='store_true', help='replace OUT if it exists')
    args = parser.parse_args()
    program = args.files[0].endswith(PROGRAM_SUFFIX)
    if len(args.files) != (2 if program else 3):
        parser.error(
            'give PROGRAM.pt2 and OUT.onnx'
            if program
            else 'give CONFIG, CHECKPOINT and OUT.onnx, or PROGRAM.pt2 and OUT.onnx'
        )
    names = ('shape', 'dynamic', 'deploy', 'factored', 'normalise')
    given = [name for name in names if getattr(args, name)]
    if program and given:
        parser.error(f'--{given[0]} is for a config: a program is as it was exported')
    if not program:
        try:
            args.files[0] = resolve_config(args.files[0])
        except FileNotFoundError as error:
            parser.error(str(error))
    return args


def read(args: argparse.Namespace) -> tuple[Any, tuple[int, int]]:
    """The config and the size of the images."""
    from pelk_mm.analysis.from_config import image_shape
    from pelk_mm.config_types import section
    from pelk_mm.conversion.trained import load_config

    cfg = load_config(args.files[0])
    if args.shape:
        return cfg, tuple(args.shape)
    test_cfg = section(cfg.model, 'test_cfg')
    if test_cfg.get('mode') == 'slide' and test_cfg.get('crop_size'):
        height, width = test_cfg['crop_size']
        return cfg, (height, width)
    return cfg, image_shape(cfg)


def main() -> None:
    """Export and say what was written."""
    args = parse_args()
    # After the arguments: a wrong one should not wait for torch to load.
    from pelk_mm.conversion.onnx_export import export_onnx
    from pelk_mm.conversion.onnx_program import export_program

    *sources, out = args.files
    same = dict(half=args.fp16, force=args.force)
    try:
        if len(sources) == 1:
            report = export_program(sources[0], out, **same)
        else:
            cfg, shape = read(args)
            report = export_onnx(
                cfg,
                sources[1],
                out,
                shape,
                dynamic=args.dynamic,
                deploy=args.deploy,
                factored=args.factored,
                normalise=args.normalise,
                **same,
            )
    except ValueError as error:  # CheckpointError is one
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')
    for what, values in (('takes', report.inputs), ('gives', report.outputs)):
        for name, shape in values.items():
            print(f'{what} {name}: {" x ".join(map(str, shape))}')
    if report.convolutions is not None and report.convolutions.factored:
        sizes = sorted(set(report.convolutions.factored), reverse=True)
        print(
            f'{len(report.convolutions.factored)} convolutions as box sums, kernels of '
            f'{", ".join(map(str, sizes))}; {len(report.convolutions.dense)} are dense'
        )
    for check in report.checks:
        shapes = ', '.join(' x '.join(map(str, shape)) for shape in check.shapes)
        print(
            f'onnxruntime on {shapes}: largest difference {check.absolute:.1e}, '
            f'{check.relative:.1e} of the largest value'
        )
    print(f'{out} is written')


if __name__ == '__main__':
    main()
