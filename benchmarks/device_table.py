"""The operators on one device against torch's convolutions, in every data type.

What `ops.py --device cuda` and `gpu.py` share. Each line is held to float64 before it
is timed.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timing import seconds_of, take_turns
from torch import Tensor

from pelk_mm import ops
from pelk_mm.files import write_atomically
from pelk_mm.layers import make_sharing_grid
from pelk_mm.ops.choose import choose
from pelk_mm.ops.problem import Problem, dtype_name

#: nchw and channels_last are nn.Conv2d's, in maps that lie so; ours and torch_fft get
#: channels_last maps, as the backbones' blocks keep them.
METHODS = ('ours', 'nchw', 'channels_last', 'torch_fft')
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BATCHES = (1, 2, 16)
#: Maps of the four stages of a 512 x 512 image, and the first of detection.
MAPS = ((16, 16), (32, 32), (64, 64), (128, 128), (200, 336))
PASSES = (('forward', False), ('forward + backward', True))
OUT_OF_MEMORY, FAILED = 'out of memory', 'failed'
#: A method that takes so many times as long as ours is run twice, not in turns.
FAR_BEHIND = 6


class Work(NamedTuple):
    """A kind of kernel, with the channels that a backbone has on a map.

    Attributes:
        name: What tables call it.
        kernels: Sizes of the kernels that are applied to the input and summed.
        channels: Of the stages, widest map first.
        grid: Sharing grid, or None for dense kernels.
    """

    name: str
    kernels: tuple[tuple[int, int], ...]
    channels: tuple[int, int, int, int]
    grid: tuple[int, ...] | None = None

    def channels_on(self, size: tuple[int, int]) -> int:
        """Channels on a map of some size."""
        edges = (128, 64, 32)
        stages = zip(edges, self.channels, strict=False)
        narrow = min(size)
        return next((c for edge, c in stages if narrow >= edge), self.channels[-1])


_PELK, _SLAK = (46, 93, 187, 374), (124, 249, 499, 998)
WORKS = (
    Work('peripheral K=51', ((51, 51),), _PELK, make_sharing_grid(51, 2)),
    Work('peripheral K=101', ((101, 101),), _PELK, make_sharing_grid(101, 3)),
    Work('dense 31x31', ((31, 31),), (128, 256, 512, 1024)),
    Work('stripes 51x5 + 5x51', ((51, 5), (5, 51)), _SLAK),
)


class Line:
    """One line of the table: the same work by every method.

    Args:
        work: The kernels.
        shape: Shape (N, C, H, W) of the input.
        dtype: Data type.
        device: Type of the device.
    """

    def __init__(
        self, work: Work, shape: tuple[int, ...], dtype: torch.dtype, device: str
    ) -> None:
        self.work, self.shape, self.dtype, self.device = work, shape, dtype, device
        make = functools.partial(torch.randn, dtype=dtype, device=device)
        self.x, self.grad = make(shape), make(shape)
        cells = [(len(work.grid),) * 2] if work.grid else work.kernels
        self.weights = [make(shape[1], *size).requires_grad_() for size in cells]

    def __str__(self) -> str:
        size = 'x'.join(map(str, self.shape))
        return f'{self.work.name}, {size}, {dtype_name(self.dtype)}'

    def maps(self, method: str) -> tuple[Tensor, Tensor]:
        """Input and gradient to the output, in the layout that a method is given."""
        layout = torch.channels_last if method != 'nchw' else torch.contiguous_format
        x, grad = (t.contiguous(memory_format=layout) for t in (self.x, self.grad))
        return x.detach().requires_grad_(), grad

    def convolve(self, method: str, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Compute the output by a method."""
        if method in ('ours', 'torch_fft'):
            backend = None if method == 'ours' else method
            if self.work.grid:
                grid = self.work.grid
                return ops.peripheral_conv2d(x, weights[0], grid, backend=backend)
            parts = [ops.depthwise_conv2d(x, w, backend=backend) for w in weights]
            return functools.reduce(torch.add, parts)
        return self.dense(x, weights)

    def expanded(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Dense kernels."""
        if self.work.grid is None:
            return list(weights)
        return [ops.expand_kernel(w, self.work.grid) for w in weights]

    @staticmethod
    def dense(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """What nn.Conv2d calls."""
        parts = [
            F.conv2d(
                x,
                weight.unsqueeze(1),
                padding=(weight.shape[1] // 2, weight.shape[2] // 2),
                groups=x.shape[1],
            )
            for weight in weights
        ]
        return functools.reduce(torch.add, parts)

    def run(self, method: str, backward: bool) -> Callable[[], object]:
        """Prepare a method for timing: what it is given is made here."""
        x, grad = self.maps(method)
        weights: list[Tensor] = self.weights
        if method in ('nchw', 'channels_last'):
            # nn.Conv2d has dense parameters.
            weights = [w.detach().requires_grad_() for w in self.expanded(weights)]

        def compute() -> object:
            if not backward:
                with torch.no_grad():
                    return self.convolve(method, x, weights)
            out = self.convolve(method, x, weights)
            return torch.autograd.grad(out, [x, *weights], grad)

        return compute

    def errors(self) -> dict[str, float]:
        """Errors of ours over the norms in float64, on the first and last channel."""
        sample = sorted({0, self.shape[1] - 1})
        x, grad = self.maps('ours')
        out = self.convolve('ours', x, self.weights)
        found = [out, *torch.autograd.grad(out, [x, *self.weights], grad)]
        exact = [
            t.detach()[:, sample].double().requires_grad_() for t in (self.x, self.grad)
        ]
        weights = [w.detach()[sample].double().requires_grad_() for w in self.weights]
        truth = self.dense(exact[0], self.expanded(weights))
        wanted = [truth, *torch.autograd.grad(truth, [exact[0], *weights], exact[1])]
        errors: dict[str, float] = {}
        for name, ours, theirs in zip(
            ('output', 'input gradient', *['weight gradient'] * len(weights)),
            found,
            wanted,
            strict=True,
        ):
            part = ours[sample] if name == 'weight gradient' else ours[:, sample]
            error = ((part.double() - theirs).norm() / theirs.norm()).item()
            errors[name] = max(error, errors.get(name, 0.0))
        return errors

    def bound(self) -> float:
        """What errors are held to: the rounding of the result, or of some sums."""
        steps = 16 if self.dtype == torch.float32 else 2
        return steps * torch.finfo(self.dtype).eps

    def chosen(self, backward: bool) -> str:
        """Backends that ours runs on."""
        x, _ = self.maps('ours')
        passes = ('input', 'weight') if backward else ('forward',)
        names = []
        for weight in self.weights:
            problem = Problem.of(x, weight, self.work.grid)
            option = choose(problem, passes, may_time=False)
            names += [backend.name for backend in option]
        return ' and '.join(dict.fromkeys(names))

    def measure(self, backward: bool, seconds: float) -> dict[str, float | str]:
        """Let the methods take turns.

        Args:
            backward: Whether to time the gradients too.
            seconds: Time to spend, about.

        Returns:
            Median seconds by method, or why there are none.
        """
        found: dict[str, float | str] = {}
        works = {}
        for method in METHODS:
            try:
                work = self.run(method, backward)
                work()  # compiles, chooses, and asks for memory
                found[method] = seconds_of(work, device=self.device)
            except torch.OutOfMemoryError:
                found[method] = OUT_OF_MEMORY
            except RuntimeError as error:
                print(f'# {self}: {method} failed: {error}', flush=True)
                found[method] = FAILED
            else:
                works[method] = functools.partial(seconds_of, work, device=self.device)
        ours = found['ours']
        if isinstance(ours, float):
            near = {m: w for m, w in works.items() if found[m] < FAR_BEHIND * ours}
            found |= take_turns(near, seconds)
        return found


def compare_all(
    device: str,
    seconds: float,
    plot: str | None = None,
    works: Iterable[Work] = WORKS,
    maps: Iterable[tuple[int, int]] = MAPS,
    batches: Iterable[int] = BATCHES,
    dtypes: Iterable[torch.dtype] = DTYPES,
) -> tuple[list[dict], bool]:
    """Check and time every combination, and print a Markdown table as it goes.

    Args:
        device: Type of the device.
        seconds: Time to spend per line, about.
        plot: Picture to draw, or None.
        works: Kinds of kernels.
        maps: Heights and widths.
        batches: Numbers of images.
        dtypes: Data types.

    Returns:
        The lines, and whether all were right.
    """
    print('\n'.join(HEADER), flush=True)
    rows = []
    for work, size, batch, dtype in itertools.product(works, maps, batches, dtypes):
        shape = (batch, work.channels_on(size), *size)
        for row in lines_of(work, shape, dtype, device, seconds):
            print(markdown(row), flush=True)
            rows.append(row)
    if plot:
        draw(plot, rows)
    right = all(row['right'] for row in rows)
    if not right:
        print('# Some lines are wrong: their errors exceed the bound.', flush=True)
    return rows, right


def lines_of(
    work: Work,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    seconds: float,
) -> Iterator[dict]:
    """Check and time one combination; what does not fit into memory says so."""
    row: dict = {
        'work': work.name,
        'shape': list(shape),
        'dtype': dtype_name(dtype),
    }
    error: float | str
    line, bound, right = None, 0.0, True
    try:
        line = Line(work, shape, dtype, device)
        bound = line.bound()
        error = max(line.errors().values())
        right = error <= bound  # a NaN is not
    except torch.OutOfMemoryError:
        error = OUT_OF_MEMORY
    for name, backward in PASSES:
        times: dict[str, float | str] = dict.fromkeys(METHODS, OUT_OF_MEMORY)
        chosen = 'none'
        if line is not None:
            try:
                times = line.measure(backward, seconds)
                chosen = line.chosen(backward)
            except torch.OutOfMemoryError:
                pass  # told by every method
        yield {
            **row,
            'pass': name,
            'error': error,
            'bound': bound,
            'right': right,
            'backend': chosen,
            'seconds': times,
        }


HEADER = (
    '| work | pass | error (bound) | backend | ours, ms | '
    + ' | '.join(f'{method} / ours' for method in METHODS[1:])
    + ' |',
    '|---' * (5 + len(METHODS) - 1) + '|',
)


def markdown(row: dict) -> str:
    """Write a line as it is in the Markdown table."""
    times = row['seconds']
    ours = times['ours']
    known = isinstance(ours, float)
    cells = [
        f'{row["work"]}, {"x".join(map(str, row["shape"]))}, {row["dtype"]}',
        row['pass'],
        row['error']
        if isinstance(row['error'], str)
        else f'{row["error"]:.1e} ({row["bound"]:.1e})' + ' WRONG' * (not row['right']),
        row['backend'],
        f'{1e3 * ours:.3g}' if known else ours,
    ]
    for method in METHODS[1:]:
        time = times[method]
        if isinstance(time, str):
            cells.append(time)
        else:
            cells.append(f'{time / ours:.2f}' if known else f'{1e3 * time:.3g} ms')
    return '| ' + ' | '.join(cells) + ' |'


def draw(path: str, rows: Sequence[dict]) -> None:
    """Draw how many times as long the others take, by map, a panel for each work."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    works = list(dict.fromkeys(row['work'] for row in rows))
    figure, panels = pyplot.subplots(
        1, len(works), figsize=(4 * len(works), 4), sharey=True, squeeze=False
    )
    for panel, work in zip(panels[0], works, strict=True):
        for method in METHODS[1:]:
            points = [
                (row['shape'][2] * row['shape'][3], times[method] / times['ours'])
                for row in rows
                for times in [row['seconds']]
                if row['work'] == work
                and isinstance(times[method], float)
                and isinstance(times['ours'], float)
            ]
            if points:
                panel.scatter(*zip(*points, strict=True), label=method, s=12)
        panel.axhline(1, color='grey')
        panel.set(title=work, xlabel='pixels', xscale='log', yscale='log')
    panels[0][0].set_ylabel('time over ours')
    panels[0][0].legend()
    figure.tight_layout()
    with write_atomically(Path(path)) as temporary:
        figure.savefig(temporary, dpi=120, format='png')
    pyplot.close(figure)
