"""Fit the cost model that chooses a convolution's backend, on this machine.

Prints the table of pelk_mm/ops/selection.py, and by how much the backends that the
table chooses are slower than the fastest ones measured. The model is of one thread, and
its time is the processor's.

    python benchmarks/selection.py            about ten minutes
    python benchmarks/selection.py --quick    a few sizes
"""

import functools
import itertools
import os
import sys
from unittest import mock

import numpy as np
import torch
from ops import GRIDS, grid
from timing import make_parser, median_seconds, prepare

from pelk_mm.ops import cpu, dispatch, selection

SIZES = (7, 10, 14, 16, 20, 28, 32, 40, 56, 64, 96, 128)
KERNELS = ((3, 3), (5, 5), (7, 7), (9, 9), (13, 13), (21, 21), (31, 31), (51, 51))
STRIPES = ((5, 11), (5, 13), (13, 5), (5, 31), (31, 5), (5, 51), (51, 5))
PERIPHERAL = tuple(taps for taps in GRIDS if taps > 7)
BATCHES = ((1, 16), (2, 64))
# Products of a plane above which slow paths are not waited for.
PATIENCE = {'direct': 4e6, 'pixels': 4e6, 'channels_last': 4e7, 'nchw': 4e6}
PATIENCE_BACKWARD = 2e6


def transposition(x) -> float:
    """Time a change of layout by what two of them add to other work.

    On all processors, summed over them: they share the memory, which sets the pace.
    """
    threads = os.cpu_count()
    weight = torch.randn(x.shape[1], 3, 3)
    pixels = x.contiguous(memory_format=torch.channels_last)
    torch.set_num_threads(threads)
    without, with_two = (
        median_seconds(lambda x=x: dispatch._convolve('direct', x, weight, None, None))
        for x in (x, pixels)
    )
    torch.set_num_threads(1)
    return threads * max(with_two - without, 0.2 * with_two) / 2


def measure_compiled(x, grad, weight, sharing_grid) -> dict[str, float]:
    """Time the passes of the compiled kernels in the instruction set that is on."""
    products = x[0, 0].numel() * weight[0].numel()
    pixels = [t.contiguous(memory_format=torch.channels_last) for t in (x, grad)]
    runs = {
        'direct' if sharing_grid is None else 'shared': ('direct', (x, grad)),
        'fft': ('fft', (x, grad)),
        'column_fft': ('column_fft', (x, grad)),
    }
    if sharing_grid is None:
        runs |= {'blocks': ('pixels', (x, grad)), 'pixels': ('pixels', pixels)}
    times = {'transpose': transposition(x)}
    for name, (backend, (image, upstream)) in runs.items():
        if products > PATIENCE.get(backend, float('inf')):
            continue

        def gradients(needs_x, b=backend, x=image, grad=upstream):
            return dispatch._backward_cpu(x, grad, weight, sharing_grid, needs_x, b)

        times[name] = median_seconds(
            lambda b=backend, x=image: dispatch._convolve(
                b, x, weight, sharing_grid, None
            )
        )
        times[f'{name}_weight'] = median_seconds(lambda f=gradients: f(False))
        if backend in selection.FOURIER:
            times[f'{name}_both'] = median_seconds(lambda f=gradients: f(True))
    return times


def measure_torch(x, grad, weight) -> dict[str, float]:
    """Time the passes of torch's backends."""
    products = x[0, 0].numel() * weight[0].numel()
    times = {}
    for backend in selection.BACKENDS[len(selection.COMPILED) :]:
        if products < PATIENCE.get(backend, float('inf')):
            times[backend] = median_seconds(
                lambda b=backend: dispatch._convolve(b, x, weight, None, None)
            )
        if backend == 'torch_fft' or products < PATIENCE_BACKWARD:
            times[f'{backend}_weight'] = median_seconds(
                lambda b=backend: dispatch._weight_grad(b, x, grad, weight, None)
            )
    return times


def measure(quick: bool) -> list[tuple[str, selection.Problem, dict[str, float]]]:
    """Time everything.

    Returns:
        Instruction set or 'torch', problem, and seconds of each pass.
    """
    sizes = SIZES[2::4] if quick else SIZES
    kernels = [*KERNELS, *STRIPES, *((taps, taps, True) for taps in PERIPHERAL)]
    # Kernels reach no further than the map: on small ones many are the same.
    work = {
        (size, batch, min(kh, 2 * size - 1), min(kw, 2 * size - 1), *shared): None
        for size, batch, (kh, kw, *shared) in itertools.product(sizes, BATCHES, kernels)
        if not shared or kh < 2 * size
    }
    found = []
    for index, (size, batch, kh, kw, *shared) in enumerate(work):
        print(f'\r{index + 1} of {len(work)}', end='', file=sys.stderr, flush=True)
        x, grad = torch.randn(2, *batch, size, size)
        sharing_grid = list(grid(kh)) if shared else None
        cells = len(sharing_grid) if shared else None
        kernel = kh, kw
        weight = torch.randn(batch[1], *((cells, cells) if shared else kernel))
        for name in cpu.instruction_sets():
            os.environ[cpu.ENVIRONMENT_VARIABLE] = name
            problem = selection.Problem(tuple(x.shape), kernel, cells, cpu.LANES[name])
            times = measure_compiled(x, grad, weight, sharing_grid)
            found.append((name, problem, times))
        if not shared:
            problem = selection.Problem(tuple(x.shape), kernel, None, 1)
            found.append(('torch', problem, measure_torch(x, grad, weight)))
    del os.environ[cpu.ENVIRONMENT_VARIABLE]
    print(file=sys.stderr)
    return found


def fit(rows: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Fit non-negative coefficients, about the least error of the logarithms."""
    scale = times
    for _ in range(10):
        scaled, wanted = rows / scale[:, None], times / scale
        active = np.ones(rows.shape[1], bool)
        solution = np.full(rows.shape[1], -1.0)
        while (solution < 0).any():
            solution = np.zeros(rows.shape[1])
            solution[active] = np.linalg.lstsq(scaled[:, active], wanted)[0]
            active &= solution > 0
        # Between the relative errors to the measured and to the fitted times.
        scale = np.sqrt(times * (rows @ solution))
    return solution


def report(found: list[tuple[str, selection.Problem, dict[str, float]]]) -> None:
    """Print how much slower the chosen backends are than the fastest ones measured."""
    for owner in cpu.instruction_sets():
        for passes in ('forward', 'both'):
            excess = []
            for who, problem, times in found:
                if who != owner:
                    continue
                # Expanded kernels are not measured apart from dense ones.
                measured = functools.partial(_measured, times)
                for channels_last in (False, True):
                    key = problem.shape, problem.kernel, problem.cells, channels_last
                    with mock.patch.object(selection, '_expected', measured):
                        options = selection._options(passes, *key, owner)
                    total = {b: sum(cost) for b, cost in options.items()}
                    chosen = selection._cheapest(passes, *key, owner)
                    excess.append(total[chosen] / min(total.values()) - 1)
            excess = np.array(excess)
            known = excess[np.isfinite(excess)]
            print(
                f'# {owner}, {passes}: the chosen backends take {known.mean():.1%} '
                f'longer than the fastest on average, {known.max():.0%} at worst; '
                f'{len(excess) - len(known)} of {len(excess)} choices were not measured'
            )


def _measured(times, owner, name, problem) -> tuple[float, float]:
    """What `selection._expected` would know if it were right."""
    return 0.0, times.get(name, float('inf')) / problem.planes


def main() -> None:
    """Measure, fit and print."""
    parser = make_parser(__doc__, threads=None)
    parser.add_argument('--quick', action='store_true', help='measure a few sizes only')
    args = parser.parse_args()
    prepare(threads=1)
    found = measure(args.quick)
    costs: dict[str, dict[str, tuple[float, ...]]] = {}
    print('_COSTS = {')
    for owner in (*cpu.instruction_sets(), 'torch'):
        costs[owner] = {}
        print(f'    {owner!r}: {{')
        for name, features in selection.FEATURES.items():
            pairs = [
                (features(problem), 1e9 * times[name] / problem.planes)
                for who, problem, times in found
                if who == owner and name in times
            ]
            if not pairs:
                continue
            rows, times = map(np.array, zip(*pairs, strict=True))
            solution = fit(rows, times)
            error = np.median(np.abs(rows @ solution / times - 1))
            costs[owner][name] = tuple(solution)
            numbers = ', '.join(f'{number:.3g}' for number in solution)
            print(f'        {name!r}: ({numbers}),  # median error {100 * error:.0f} %')
        print('    },')
    print('}')
    selection._COSTS = costs
    selection._cheapest.cache_clear()
    report(found)


if __name__ == '__main__':
    main()
