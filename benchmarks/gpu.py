"""Check and time everything on a GPU, and write the tables as Markdown and JSON.

Every operator in every data type against nn.Conv2d in both layouts and the FFT, each
line held to float64 first, then whole models. For anybody with a card:

    python benchmarks/gpu.py                        gpu.md and gpu.json, about an hour
    python benchmarks/gpu.py --batch 2 --map 64x64  a part of the operators' lines
    python benchmarks/gpu.py --operators            without the models
"""

import argparse
import contextlib
import io
import sys

import backbones
from device_table import BATCHES, DTYPES, MAPS, WORKS, compare_all
from mmseg.utils import register_all_modules
from timing import add_device, make_parser, prepare, write_json, write_text

from pelk_mm.ops.problem import dtype_name


class Tee(io.StringIO):
    """Keeps what is printed while it is printed."""

    def write(self, text: str) -> int:
        """Write to both."""
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
        return super().write(text)


def parse_map(text: str) -> tuple[int, int]:
    """Height and width, of a text such as 200x336."""
    try:
        height, width = map(int, text.split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is no size of a map; write it as 200x336'
        ) from None
    if min(height, width) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no size of a map')
    return height, width


def main() -> None:
    """Print the tables and write them."""
    parser = make_parser(__doc__)
    add_device(parser, 'cuda')
    names = {dtype_name(dtype): dtype for dtype in DTYPES}
    works = {work.name: work for work in WORKS}
    parser.add_argument(
        '--batch', type=int, action='append', help=f'images (default: {BATCHES})'
    )
    parser.add_argument(
        '--map', type=parse_map, action='append', help='size as 200x336 (default: 5)'
    )
    parser.add_argument('--dtype', choices=names, action='append')
    parser.add_argument('--work', choices=works, action='append')
    parser.add_argument(
        '--seconds',
        type=float,
        default=0.5,
        help='time to spend per line (default: about %(default)s)',
    )
    parser.add_argument('--operators', action='store_true', help='leave the models out')
    parser.add_argument(
        '--size', type=int, default=512, help='images of the models (default: 512)'
    )
    parser.add_argument(
        '--throughput-batch', type=int, default=64, help='images (default: 64)'
    )
    parser.add_argument('--markdown', default='gpu.md', help='(default: %(default)s)')
    parser.add_argument('--json', default='gpu.json', help='(default: %(default)s)')
    parser.add_argument('--plot', metavar='PNG', help='draw the ratios against maps')
    args = parser.parse_args()
    told = Tee()
    found: dict = {}
    with contextlib.redirect_stdout(told):
        found |= prepare(args.threads, args.device)
        try:
            found['operators'], right = compare_all(
                args.device,
                args.seconds,
                args.plot,
                [works[name] for name in args.work or works],
                args.map or MAPS,
                args.batch or BATCHES,
                [names[name] for name in args.dtype or names],
            )
            if not args.operators:
                register_all_modules(init_default_scope=True)
                print()
                found['models'] = backbones.compare(
                    backbones.MODEL_CONFIGS, 2, args.size, 3, True, args.device
                )
                found['images a second'] = backbones.throughput(
                    args.throughput_batch, device=args.device
                )
        finally:
            # What was measured before an interruption is worth keeping.
            write_text(args.markdown, told.getvalue())
            write_json(args.json, found)
    raise SystemExit(not right)


if __name__ == '__main__':
    main()
