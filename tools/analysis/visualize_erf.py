"""Draw and measure the effective receptive fields of models.

As RepLKNet, SLaK and PeLK do: the gradient of the last feature map's centre with
respect to the image, negative parts left out, summed over channels, averaged over
images and log-scaled; and the areas of the smallest centred squares that hold 20, 30,
50 and 99 % of it. Into DIR: erf.png, erf.md, erf.json and, for each model, its
contributions as NAME.npy and what a second run goes on from as NAME.npz.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pelk_mm.analysis.receptive_field import Field
    from pelk_mm.analysis.receptive_field_images import Picture
    from pelk_mm.analysis.receptive_field_models import Model


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='A run that is interrupted goes on where it was when the same command '
        'is given again, and a larger --count adds to the images that are done.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--arch',
        nargs='+',
        default=[],
        metavar='NAME',
        help='models with random weights, such as pelk-tiny-101, slak-tiny or '
        'replknet-31B',
    )
    parser.add_argument(
        '--model',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a trained model, once for each: its config, the name of one of ours, or '
        'a name as for --arch; and its checkpoint, or that of its backbone alone',
    )
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument(
        '--images',
        type=Path,
        metavar='DIR',
        help='folder of images, the first by name are taken (default: drawn ones)',
    )
    parser.add_argument(
        '--count', type=int, default=50, help='number of images (%(default)s)'
    )
    parser.add_argument(
        '--size',
        type=int,
        default=1024,
        help='height and width to which images are stretched (%(default)s)',
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='of the random weights (%(default)s)'
    )
    parser.add_argument(
        '--layer-scale',
        type=float,
        metavar='VALUE',
        help='what the layer scales of PeLK and SLaK start from at random weights '
        "(default: the backbones' own, 1e-6; our segmenters start from 1)",
    )
    parser.add_argument('--device', default='cpu', help='such as cuda (%(default)s)')
    parser.add_argument(
        '--squares',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='whether to outline the squares in the picture',
    )
    args = parser.parse_args()
    if not args.arch and not args.model:
        parser.error('give models: --arch NAME ... or --model CONFIG CHECKPOINT')
    if args.count < 1:
        parser.error(f'--count {args.count} is not a positive number')
    if args.size < 32:
        parser.error(f'--size {args.size} is too small; give 32 or more')
    if args.layer_scale is not None and not args.layer_scale > 0:
        parser.error(f'--layer-scale {args.layer_scale:g} is not a positive number')
    return args


def find_config(name: str) -> str:
    """Path of a config, which may be the name of one of ours, or a name of an arch."""
    from pelk_mm.analysis.open_backbone import ARCHITECTURES
    from pelk_mm_cli import config_path

    path = Path(name)
    if path.is_file() or path.name != name:
        return name
    if name.lower() in map(str.lower, ARCHITECTURES):
        return name
    return str(config_path(name))


def check_device(name: str) -> None:
    """Raise an error if tensors cannot be put on a device."""
    import torch

    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f'--device {name} cannot be used: {reason}; give cpu'
        ) from error


def prepare_folder(folder: Path) -> None:
    """Make the folder of the results and see whether it can be written to."""
    from pelk_mm.checkpoints.files import CheckpointError
    from pelk_mm.files import write_atomically

    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / 'erf.probe'
        with write_atomically(probe):
            pass
        probe.unlink()
    except OSError as error:
        raise CheckpointError(
            f'--out {folder} cannot be written to: {error}'
        ) from error


def file_name(name: str, taken: set[str]) -> str:
    """A name for a model's files that no other model has."""
    plain = ''.join(c if c.isalnum() or c in '-_.' else '_' for c in name)
    number, unique = 1, plain
    while unique.lower() in taken:
        number += 1
        unique = f'{plain}_{number}'
    taken.add(unique.lower())
    return unique


def measure_model(
    model: 'Model', stem: str, pictures: 'list[Picture]', args: argparse.Namespace
) -> 'Field':
    """Sum a model's contributions, from where a run before this one has got to."""
    import numpy as np

    from pelk_mm.analysis.receptive_field import field_key, measure, resume
    from pelk_mm.analysis.receptive_field_images import samples
    from pelk_mm.checkpoints.files import write_output
    from pelk_mm.conversion.report import show_progress

    size = (args.size, args.size)
    backbone = model.backbone.to(args.device)
    key = field_key(backbone, size, repr(model.preprocess))
    inputs = samples(pictures, args.size, model.preprocess, args.device)
    path = args.out / f'{stem}.npz'
    start, reason = resume(path, key, inputs)
    done = 0 if start is None else len(start.seen)
    if reason:
        print(f'{model.name}: {path} is replaced, for {reason}', file=sys.stderr)
    if done:
        print(f'{model.name}: {done} images were done before', file=sys.stderr)

    def track(items: Any, _: str, total: int) -> Any:
        return show_progress(items, model.name, total)

    field = measure(backbone, inputs, key, path, start, track)
    out = args.out / f'{stem}.npy'
    with write_output(out) as temporary, temporary.open('wb') as file:
        np.save(file, field.mean)
    print(f'{model.name}: {field.images} of {len(inputs)} images', file=sys.stderr)
    return field


def run(args: argparse.Namespace) -> None:
    """Measure all models and write the results."""
    from pelk_mm.analysis.open_backbone import find_architecture
    from pelk_mm.analysis.receptive_field_images import draw_pictures, find_pictures
    from pelk_mm.analysis.receptive_field_models import random_model, trained_model
    from pelk_mm.analysis.receptive_field_picture import (
        Measured,
        as_json,
        draw_fields,
        format_tables,
    )
    from pelk_mm.checkpoints.files import write_output

    check_device(args.device)
    # Everything that can be wrong is found before the first model is measured.
    names = list(dict.fromkeys(map(find_architecture, args.arch)))
    models = [
        *(random_model(name, args.seed, args.layer_scale) for name in names),
        *(trained_model(find_config(config), file) for config, file in args.model),
    ]
    if args.images is None:
        pictures = draw_pictures(args.count)
    else:
        pictures = find_pictures(args.images, args.count)
        if len(pictures) < args.count:
            print(f'{args.images} has {len(pictures)} images', file=sys.stderr)
    prepare_folder(args.out)

    measured, taken = [], {'erf'}
    while models:
        model = models.pop(0)  # none is kept longer than it is needed
        stem = file_name(model.name, taken)
        field = measure_model(model, stem, pictures, args)
        measured.append(Measured.of(model.name, model.weights, field))
    tables = format_tables(measured)
    source = 'drawn images' if args.images is None else f'images of {args.images.name}'
    text = f'# Effective receptive fields, {source}\n\n{tables}\n'
    for name, content in (('erf.md', text), ('erf.json', as_json(measured))):
        with write_output(args.out / name) as temporary:
            temporary.write_text(content)
    with write_output(args.out / 'erf.png') as temporary:
        draw_fields(measured, temporary, args.squares)
    print(tables)
    print(f'\nPicture, tables and matrices: {args.out}')


def main() -> None:
    """Measure, draw and print."""
    args = parse_args()
    # After the arguments: a wrong one should not wait for torch to load.
    prog = Path(sys.argv[0]).name
    try:
        run(args)
    except (FileNotFoundError, ValueError) as error:  # CheckpointError is one
        sys.exit(f'{prog}: {error}')
    except KeyboardInterrupt:
        sys.exit(f'\n{prog}: interrupted; the same command goes on from here')


if __name__ == '__main__':
    main()
