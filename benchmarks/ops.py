"""Time the large-kernel operators against torch's convolutions and the FFT.

All methods of a line take turns in one run, so that ratios survive a busy machine.
docs/performance.md quotes the tables. The methods:

    ours            the operator, choosing its backend itself
    nchw            torch's convolution
    channels_last   the same in that layout
    textbook_fft    torch.fft, padded by a whole kernel, fast lengths, torch's autograd
    torch_fft       this package's backend on torch.fft, for where there is no compiler:
                    padded by half a kernel, with gradients of its own

    python benchmarks/ops.py                    every suite, 2 threads
    python benchmarks/ops.py --suite stripes    one of them
    python benchmarks/ops.py --plot docs/time_against_kernel.png
    python benchmarks/ops.py --device cuda      the table of benchmarks/gpu.py instead
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from device_table import compare_all
from timing import (
    add_device,
    make_parser,
    prepare,
    ratios,
    seconds_of,
    take_turns,
    write_json,
)

from pelk_mm import ops
from pelk_mm.ops.problem import fast_length

TORCH_METHODS = ('nchw', 'channels_last')
METHODS = ('ours', 'textbook_fft', *TORCH_METHODS, 'torch_fft')
# The half grids of the paper's rule, outermost cell first.
GRIDS = {
    7: (1, 1, 1, 1),
    13: (2, 2, 1, 1, 1),
    31: (7, 4, 2, 1, 1, 1),
    51: (9, 8, 4, 2, 1, 1, 1),
    101: (17, 16, 8, 4, 2, 1, 1, 1, 1),
    201: (35, 32, 16, 8, 4, 2, 1, 1, 1, 1),
}
PERIPHERAL_SHAPES = ((1, 46, 128, 512), (2, 46, 128, 128))
SCALING_SHAPE = (2, 46, 128, 128)
PASSES = (('forward', False), ('forward + backward', True))
STAGES = (128, 64, 32, 16)  # maps of the four stages of a 512 x 512 input
SLAK_T = tuple(zip((124, 249, 499, 998), STAGES, (51, 49, 47, 13), strict=True))
REPLKNET = tuple(zip((128, 256, 512, 1024), STAGES, (31, 29, 27, 13), strict=True))


def grid(taps: int) -> tuple[int, ...]:
    """Mirror the half grid of a kernel size."""
    half = GRIDS[taps]
    return half[:-1] + (1,) + half[-2::-1]


def textbook_fft(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolve by Fourier transforms as the theorem says, differentiably."""
    sizes = tuple(zip(x.shape[2:], weight.shape[1:], strict=True))
    lengths = [fast_length(size + taps - 1) for size, taps in sizes]
    product = torch.fft.rfft2(x, lengths) * torch.fft.rfft2(weight, lengths).conj()
    shifts = [taps // 2 for _, taps in sizes]
    out = torch.fft.irfft2(product, lengths).roll(shifts, (-2, -1))
    return out[..., : x.shape[2], : x.shape[3]]


class Case:
    """One line of a table: the same work by every method.

    Args:
        shape: Shape (N, C, H, W) of the input.
        kernels: Sizes (kh, kw) of the kernels applied to the input and summed.
        sharing_grid: Grid of a peripheral convolution; None for dense kernels.
        backward: Whether to time the gradients too.
        methods: Methods to compare.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        kernels: Iterable[tuple[int, int]],
        sharing_grid: tuple[int, ...] | None = None,
        backward: bool = False,
        methods: tuple[str, ...] = METHODS,
    ) -> None:
        self.backward, self.sharing_grid, self.methods = backward, sharing_grid, methods
        self.x = torch.randn(shape, requires_grad=backward)
        self.grad = torch.randn(shape)
        self.weights = [
            torch.randn(shape[1], kh, kw, requires_grad=backward) for kh, kw in kernels
        ]
        cells = len(sharing_grid or ())
        self.shared = torch.randn(shape[1], cells, cells, requires_grad=backward)

    def _convolve(self, method: str) -> torch.Tensor:
        if method == 'ours' and self.sharing_grid:
            return ops.peripheral_conv2d(self.x, self.shared, self.sharing_grid)
        out = 0
        for weight in self.weights:
            if method == 'textbook_fft':
                out = out + textbook_fft(self.x, weight)
            elif method in ('ours', 'torch_fft'):
                backend = None if method == 'ours' else method
                out = out + ops.depthwise_conv2d(self.x, weight, backend=backend)
            else:
                kh, kw = weight.shape[1:]
                layout = getattr(torch, method, torch.contiguous_format)
                out = out + F.conv2d(
                    self.x.contiguous(memory_format=layout),
                    weight.unsqueeze(1),
                    padding=(kh // 2, kw // 2),
                    groups=self.x.shape[1],
                )
        return out

    def run(self, method: str) -> float:
        """Time the work once.

        Args:
            method: A name out of `METHODS`.

        Returns:
            Seconds.
        """
        return seconds_of(self._compute, method)

    def _compute(self, method: str) -> None:
        if not self.backward:
            with torch.no_grad():
                self._convolve(method)
            return
        shares = method == 'ours' and self.sharing_grid
        leaves = [self.shared] if shares else self.weights
        torch.autograd.grad(self._convolve(method), [self.x, *leaves], self.grad)

    def project(self, method: str) -> float:
        """Estimate the seconds of a method from a few channels of one image."""
        _, channels, height, width = self.x.shape
        # Planes are independent; in channels_last a vector holds 16 of them.
        few = min(channels, 16 if method == 'channels_last' else 2)
        kernels = [weight.shape[1:] for weight in self.weights]
        small = Case(
            (1, few, height, width), kernels, self.sharing_grid, self.backward, ()
        )
        first = small.run(method)
        best = first if first > 0.1 else min(small.run(method) for _ in range(3))
        return best * self.x.shape[0] * channels / few

    def measure(self, seconds: float) -> dict[str, float]:
        """Let the methods take turns.

        Args:
            seconds: Time to spend, about.

        Returns:
            Median seconds by method. A method that would be far behind is not run in
            full; its time is projected from a few channels.
        """
        turn = self.run('torch_fft')
        projected = {m: self.project(m) for m in self.methods if m in TORCH_METHODS}
        contenders = [m for m in self.methods if projected.get(m, 0) < 6 * turn]
        works = {m: functools.partial(self.run, m) for m in contenders}
        return projected | take_turns(works, seconds)


def cases(suite: str) -> Iterator[tuple[str, Case]]:
    """Yield the lines of a suite as (label, Case)."""
    if suite == 'peripheral':
        for shape in PERIPHERAL_SHAPES:
            for taps in (51, 101):
                for label, backward in PASSES:
                    name = f'peripheral K={taps} {"x".join(map(str, shape))} {label}'
                    yield name, Case(shape, [(taps, taps)], grid(taps), backward)
    if suite == 'stripes':
        for channels, size, taps in SLAK_T:
            shape = (2, channels, size, size)
            name = f'stripes {taps}x5 + 5x{taps} {"x".join(map(str, shape))}'
            yield (
                f'{name} forward + backward',
                Case(shape, [(taps, 5), (5, taps)], backward=True),
            )
    if suite == 'dense':
        for channels, size, taps in REPLKNET:
            shape = (2, channels, size, size)
            name = f'dense {taps}x{taps} {"x".join(map(str, shape))}'
            yield (
                f'{name} forward + backward',
                Case(shape, [(taps, taps)], backward=True),
            )
    if suite == 'grid':
        for size in (7, 14, 28, 56, 128):
            for kernel in ((5, 5), (7, 7), (13, 13), (31, 31), (51, 51), (5, 51)):
                for label, backward in PASSES:
                    shape = (2, 64, size, size)
                    name = (
                        f'{kernel[0]}x{kernel[1]} {"x".join(map(str, shape))} {label}'
                    )
                    yield name, Case(shape, [kernel], backward=backward)
    if suite == 'scaling':
        for label, backward in PASSES:
            for taps in GRIDS:
                name = (
                    f'peripheral K={taps} {"x".join(map(str, SCALING_SHAPE))} {label}'
                )
                yield name, scaling_case(taps, backward)


def scaling_case(taps: int, backward: bool) -> Case:
    """Build the line of a kernel size, everything else being equal."""
    return Case(SCALING_SHAPE, [(taps, taps)], grid(taps), backward)


def issue_rate() -> float:
    """Measure the multiply-adds a second that the threads can issue.

    Returns:
        The rate of torch's matrix product, which does little else.
    """
    a, b = torch.randn(2, 1536, 1536)
    return 1536**3 / min(seconds_of(torch.matmul, a, b) for _ in range(12))


def floors(seconds: float) -> None:
    """Print how far the compiled kernels are from what the cores can issue.

    Counted are, per pixel and channel, of Fourier transforms the usual 5 n log2(n)
    additions and multiplications of n complex points, half of that for real ones, and
    6 per product of two spectra. With transforms down the columns alone, a frequency
    takes two additions per column and distinct cell size, and by products of three
    multiply-adds and a shared addition four operations per column and cell forward,
    seven for both gradients. Each counts as an instruction.

    Args:
        seconds: Time to spend per line, about.
    """
    rate = issue_rate()
    print('| work | operations per pixel | time over floor |')
    print('|---|---|---|', flush=True)
    shape = PERIPHERAL_SHAPES[1]
    pixels = shape[2] * shape[3]
    for taps in (51, 101, 201):
        cells = len(grid(taps))
        # Half a kernel of padding, and of a kernel only its valid taps.
        down, along = (
            fast_length(size + min(taps, 2 * size - 1) // 2) for size in shape[2:]
        )
        points = down * along
        transform = 2.5 * points * math.log2(points) / pixels
        product = 3 * points / pixels
        column = 2.5 * down * math.log2(down) / shape[2]
        shared = cells / shape[3] / shape[0]  # of the kernel's columns, over the batch
        frequencies = (down / 2 + 1) / shape[2]
        boxes = 2 * (len(set(grid(taps))) - 1) * frequencies
        for name, backend, backward, operations in (
            (
                'Fourier, forward',
                'fft',
                False,
                (2 + 1 / shape[0]) * transform + product,
            ),
            (
                'Fourier, both gradients',
                'fft',
                True,
                (3 + 2 / shape[0]) * transform + 2 * product,
            ),
            (
                'Fourier down, box sums along, forward',
                'column_fft',
                False,
                (2 + shared) * column + boxes + 4 * cells * frequencies,
            ),
            (
                'Fourier down, box sums along, both gradients',
                'column_fft',
                True,
                (3 + 2 * shared) * column + boxes + 7 * cells * frequencies,
            ),
        ):
            work = one_pass(shape, taps, backend, backward)
            median = take_turns({name: functools.partial(seconds_of, work)}, seconds)
            ratio = median[name] * rate / (operations * math.prod(shape))
            label = f'peripheral K={taps} {"x".join(map(str, shape))}, {name}'
            print(f'| {label} | {operations:.0f} | {ratio:.2f} |', flush=True)


def one_pass(
    shape: tuple[int, ...], taps: int, backend: str, backward: bool
) -> Callable[[], object]:
    """Prepare one pass of a peripheral convolution by one backend.

    Args:
        shape: Shape (N, C, H, W) of the input.
        taps: Kernel size K.
        backend: Name of the backend.
        backward: Whether the pass is that of both gradients, without the forward
            pass before it.
    """
    x, grad = torch.randn(2, *shape)
    cells = len(grid(taps))
    weight = torch.randn(shape[1], cells, cells)
    leaves = [t.requires_grad_(backward) for t in (x, weight)]

    def forward() -> torch.Tensor:
        return ops.peripheral_conv2d(x, weight, grid(taps), backend=backend)

    if not backward:
        return forward
    out = forward()
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def plot(path: str, seconds: float) -> None:
    """Draw time against kernel size, forward and backward, every method."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for panel, backward in zip(panels, (False, True), strict=True):
        curves: dict[str, list[float]] = {method: [] for method in METHODS}
        for taps in GRIDS:
            case = Case((1, 46, 128, 128), [(taps, taps)], grid(taps), backward)
            for method, median in case.measure(seconds).items():
                curves[method].append(median)
        least = min(min(curve) for curve in curves.values())
        for method, curve in curves.items():
            panel.loglog(list(GRIDS), [t / least for t in curve], 'o-', label=method)
        panel.set_title('forward + backward' if backward else 'forward')
        panel.set_xlabel('kernel size K')
        panel.set_xticks(list(GRIDS), list(GRIDS))
    panels[0].set_ylabel('time, shortest = 1')
    panels[0].legend()
    figure.suptitle('46 x 128 x 128; ours: peripheral convolution')
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def compare(suites: Iterable[str], seconds: float) -> list[dict]:
    """Print the tables of suites.

    Args:
        suites: Their names.
        seconds: Time to spend per line, about.

    Returns:
        Of every line the work, the suite and the median seconds by method.
    """
    print(f'| work | best of torch | ours x faster | {" | ".join(METHODS[1:])} |')
    print('|---' * (2 + len(METHODS)) + '|', flush=True)
    results = []
    for suite in suites:
        for name, case in cases(suite):
            medians = case.measure(seconds)
            times = ratios(medians, 'ours')
            best = min(times.keys() - {'torch_fft'}, key=times.__getitem__)
            columns = ' | '.join(f'{times[m]:.2f}' for m in METHODS[1:])
            print(f'| {name} | {best} | {times[best]:.2f} | {columns} |', flush=True)
            results.append({'work': name, 'suite': suite, 'seconds': medians})
    return results


def growth(seconds: float) -> None:
    """Print how our time grows with the kernel, all sizes in turns.

    Args:
        seconds: Time to spend per pass, about.
    """
    print('\n| ours | time over that of the K before |\n|---|---|')
    for label, backward in PASSES:
        works = {
            taps: functools.partial(scaling_case(taps, backward).run, 'ours')
            for taps in GRIDS
        }
        medians = take_turns(works, seconds)
        for before, after in itertools.pairwise(GRIDS):
            ratio = medians[after] / medians[before]
            print(f'| K={after} over K={before}, {label} | {ratio:.2f} |', flush=True)


def main() -> None:
    """Run the suites asked for and print their tables."""
    suites = ('peripheral', 'stripes', 'dense', 'grid', 'scaling')
    parser = make_parser(__doc__)
    parser.add_argument(
        '--suite',
        choices=suites,
        action='append',
        help='the table to print, more than once for several (default: all of them)',
    )
    parser.add_argument(
        '--seconds',
        type=float,
        default=2.0,
        help='time to spend per line (default: about %(default)s)',
    )
    parser.add_argument(
        '--floor',
        action='store_true',
        help='print times over what the cores can issue, instead of the suites '
        'unless they are named',
    )
    parser.add_argument(
        '--plot',
        metavar='PNG',
        help='draw time against kernel size, instead of the suites unless they are '
        'named',
    )
    parser.add_argument('--json', metavar='FILE', help='write all medians to a file')
    add_device(parser)
    args = parser.parse_args()
    machine = prepare(args.threads, args.device)
    if args.device != 'cpu':
        if args.suite or args.floor:
            parser.error('--suite and --floor are of the CPU; leave --device out')
        rows, right = compare_all(args.device, args.seconds, args.plot)
        if args.json:
            write_json(args.json, {**machine, 'results': rows})
        raise SystemExit(not right)
    results = []
    if not (args.plot or args.floor) or args.suite:
        chosen = args.suite or suites
        results = compare(chosen, args.seconds)
        if 'scaling' in chosen:
            growth(args.seconds)
    if args.floor:
        floors(args.seconds)
    if args.json:
        write_json(args.json, {**machine, 'results': results})
    if args.plot:
        plot(args.plot, args.seconds)


if __name__ == '__main__':
    main()
