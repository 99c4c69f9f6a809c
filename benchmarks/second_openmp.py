"""Time the kernels where another OpenMP runtime was loaded before torch's.

Two processes run the same calls in turns, one of them with the other runtime in
``LD_PRELOAD``. Both have to find the same bits. Numbers above 1 say how many times
longer calls take with the other runtime; more than ``--most`` of any call, or other
bits, are an error.

    python benchmarks/second_openmp.py libiomp5.so    of the package intel-openmp
"""

import functools
import hashlib
import multiprocessing
import os
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from mmengine.registry import MODELS
from timing import make_parser, prepare, seconds_of, take_turns

import pelk_mm  # noqa: F401 - registers the backbones
from pelk_mm.layers import make_sharing_grid
from pelk_mm.ops import depthwise_conv2d, peripheral_conv2d

ARCH = dict(channels=[32, 64], depths=[1, 2], kernel_sizes=[51, 31], central_radius=2)


def digest(results: tuple[torch.Tensor, ...]) -> str:
    """Name the bits of tensors."""
    found = hashlib.sha256()
    for result in results:
        found.update(result.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def make_works() -> dict[str, Callable[[], tuple[torch.Tensor, ...]]]:
    """What is timed: each family of kernels with its gradients, and a backbone."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    x, grad = draw(2, 48, 64, 64), draw(2, 48, 64, 64)
    grid = make_sharing_grid(51, 2)
    small, dense, shared = (
        draw(48, 7, 7),
        draw(48, 31, 31),
        draw(48, len(grid), len(grid)),
    )
    leaves = [t.requires_grad_() for t in (x, small, dense, shared)]

    def convolve(backend: str, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if weight is shared:
            out = peripheral_conv2d(x, weight, grid, backend=backend)
        else:
            out = depthwise_conv2d(x, weight, backend=backend)
        return out, *torch.autograd.grad(out, (leaves[0], weight), grad)

    torch.manual_seed(0)
    model = MODELS.build(dict(type='PeLK', arch=ARCH, out_indices=(0, 1))).eval()
    image = draw(1, 3, 256, 256)

    def infer() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return tuple(model(image))

    return {
        'direct': lambda: convolve('direct', small),
        'pixels': lambda: convolve('pixels', small),
        'fft': lambda: convolve('fft', dense),
        'column_fft': lambda: convolve('column_fft', shared),
        'a backbone': infer,
    }


def serve(connection: Connection, threads: int) -> None:
    """Run what the other end of a connection names; answer with the seconds."""
    torch.set_num_threads(threads)
    works = make_works()
    loaded = Path('/proc/self/maps').read_text()
    connection.send(({name: digest(work()) for name, work in works.items()}, loaded))
    while (name := connection.recv()) is not None:
        connection.send(seconds_of(works[name]))


class Runner:
    """A process that runs the works.

    Args:
        threads: Threads that torch uses there.
        library: What to load first, or None.
    """

    def __init__(self, threads: int, library: str | None) -> None:
        context = multiprocessing.get_context('spawn')
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, threads))
        before = os.environ.pop('LD_PRELOAD', None)
        try:
            if library is not None:
                os.environ['LD_PRELOAD'] = library
            self.process.start()
        finally:
            os.environ.pop('LD_PRELOAD', None)
            if before is not None:
                os.environ['LD_PRELOAD'] = before
        self.digests, loaded = self.connection.recv()
        if library is not None and Path(library).name not in loaded:
            raise SystemExit(f'{library} was not loaded; is it a shared library?')

    def run(self, name: str) -> float:
        """Run a work once; returns the seconds."""
        self.connection.send(name)
        return self.connection.recv()

    def close(self) -> None:
        """End the process."""
        self.connection.send(None)
        self.process.join()


def main() -> None:
    """Print the table."""
    parser = make_parser(__doc__)
    parser.add_argument('library', help='the other runtime, such as libiomp5.so')
    parser.add_argument(
        '--seconds',
        type=float,
        default=20.0,
        help='time to spend per line (default: about %(default)s)',
    )
    parser.add_argument(
        '--most',
        type=float,
        default=1.2,
        help='ratio from which on it is an error (default: %(default)s)',
    )
    args = parser.parse_args()
    library = Path(args.library).resolve()
    if not library.is_file():
        parser.error(f'there is no file {library}')
    prepare(args.threads)
    slow = []
    with (
        closing(Runner(args.threads, None)) as alone,
        closing(Runner(args.threads, str(library))) as preloaded,
    ):
        different = [
            name
            for name, bits in alone.digests.items()
            if bits != preloaded.digests[name]
        ]
        print('| call | with the other runtime |\n|---|---|', flush=True)
        for name in alone.digests:
            medians = take_turns(
                {
                    each: functools.partial(each.run, name)
                    for each in (alone, preloaded)
                },
                args.seconds,
            )
            ratio = medians[preloaded] / medians[alone]
            if ratio > args.most:
                slow.append(name)
            print(f'| {name} | {ratio:.2f} |', flush=True)
    if different:
        raise SystemExit(f'other bits: {", ".join(different)}')
    if slow:
        raise SystemExit(f'more than {args.most} times slower: {", ".join(slow)}')
    print('\nthe same bits in both')


if __name__ == '__main__':
    main()
