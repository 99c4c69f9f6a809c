"""Fit the cost model that chooses a convolution's backend, on this machine.

Prints the table of `pelk_mm/ops/selection.py`, and by how much the backends that the
table chooses are slower than the fastest ones measured. One thread, processor time.

    python benchmarks/selection.py            about five minutes
    python benchmarks/selection.py --quick    a few sizes
"""

import argparse
import itertools
import os
import statistics
import sys
import time

import numpy as np
import torch
from ops import GRIDS, grid, processor

from pelk_mm import ops
from pelk_mm.ops import cpu, dispatch, reference, selection

SIZES = (7, 10, 14, 16, 20, 28, 32, 40, 56, 64, 96, 128)
KERNELS = ((3, 3), (5, 5), (7, 7), (9, 9), (13, 13), (21, 21), (31, 31), (51, 51))
STRIPES = ((5, 11), (5, 13), (13, 5), (5, 31), (31, 5), (5, 51), (51, 5))
PERIPHERAL = tuple(taps for taps in GRIDS if taps > 7)
BATCHES = ((1, 16), (2, 64))
# Products of a plane above which torch's slow paths are not waited for.
PATIENCE = {'channels_last': 4e7, 'nchw': 4e6, 'backward': 2e6}


def seconds(work) -> float:
    """Time a call, median of a few."""
    work()
    start = time.thread_time()
    work()
    turns = max(3, min(30, int(0.02 / max(1e-6, time.thread_time() - start))))
    times = []
    for _ in range(turns):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return statistics.median(times)


def measure_compiled(x, grad, weight, sharing_grid) -> dict[str, float]:
    """Time the passes of the compiled kernels in the instruction set that is on."""
    name = 'direct' if sharing_grid is None else 'shared'

    def convolve(backend):
        return dispatch._convolve(backend, x, weight, sharing_grid, None)

    def gradients(needs_x, backend):
        return dispatch._backward_cpu(x, grad, weight, sharing_grid, needs_x, backend)

    times = {
        name: seconds(lambda: convolve('direct')),
        f'{name}_weight': seconds(lambda: gradients(False, 'direct')),
        'fft': seconds(lambda: convolve('fft')),
    }
    both = seconds(lambda: gradients(True, 'fft'))
    # At least the transform of the input.
    times['fft_weight'] = max(both - times['fft'], 0.3 * both)
    return times


def measure_torch(x, grad, weight) -> dict[str, float]:
    """Time the passes of torch's backends."""
    products = x[0, 0].numel() * weight[0].numel()
    times = {}
    for backend in selection.BACKENDS[len(selection.COMPILED) :]:
        if products < PATIENCE.get(backend, float('inf')):
            times[backend] = seconds(
                lambda b=backend: dispatch._convolve(b, x, weight, None, None)
            )
        if backend == 'torch_fft' or products < PATIENCE['backward']:
            times[f'{backend}_weight'] = seconds(
                lambda b=backend: dispatch._weight_grad(b, x, grad, weight, None)
            )
    if products < PATIENCE['backward']:
        native = reference.depthwise_conv2d
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        times['native'] = seconds(lambda: native(x, weight))
        both = seconds(lambda: torch.autograd.grad(native(*leaves), leaves, grad))
        times['native_backward'] = max(both - times['native'], 0.3 * both)
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
            problem = selection.Problem(
                tuple(x.shape), kernel, cells, selection.LANES[name]
            )
            times = measure_compiled(x, grad, weight, sharing_grid)
            found.append((name, problem, times))
        if not shared:
            problem = selection.Problem(tuple(x.shape), kernel, None, 1)
            found.append(('torch', problem, measure_torch(x, grad, weight)))
    del os.environ[cpu.ENVIRONMENT_VARIABLE]
    print(file=sys.stderr)
    return found


def operator_overhead() -> list[float]:
    """Time how much longer than torch's our operator takes where nothing is to do.

    In between other work fills the caches, as in a network.

    Returns:
        Seconds without and with gradients.
    """
    x, grad = torch.randn(2, 1, 1, 1, 1)
    weight = torch.randn(1, 1, 1)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    other = torch.randn(64, 128, 128)

    def ours(*operands):
        return ops.depthwise_conv2d(*operands, backend='direct')

    works = (
        lambda: ours(x, weight),
        lambda: reference.depthwise_conv2d(x, weight),
        lambda: torch.autograd.grad(ours(*leaves), leaves, grad),
        lambda: torch.autograd.grad(reference.depthwise_conv2d(*leaves), leaves, grad),
    )
    times = [[] for _ in works]
    for _ in range(100):
        for work, found in zip(works, times, strict=True):
            torch.fft.rfft2(other)
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
    medians = [statistics.median(found) for found in times]
    return [medians[0] - medians[1], medians[2] - medians[3]]


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
    by_torch = {(p.shape, p.kernel): t for who, p, t in found if who == 'torch'}
    for owner in cpu.instruction_sets():
        for work, suffix in (('convolve', ''), ('weight_grad', '_weight')):
            excess = []
            for who, (shape, kernel, cells, _), times in found:
                if who != owner:
                    continue
                direct = 'direct' if cells is None else 'shared'
                names = {'direct': direct + suffix, 'fft': 'fft' + suffix}
                measured = {b: times[name] for b, name in names.items()}
                if cells is None:
                    others = by_torch[shape, kernel]
                    for backend in selection.BACKENDS:
                        if backend + suffix in others:
                            measured[backend] = others[backend + suffix]
                chosen = measured[
                    selection._cheapest(work, shape, kernel, cells, owner)
                ]
                fastest = min(measured.values())
                excess.append(chosen / fastest - 1)
            print(
                f'# {owner}, {work}: the chosen backend takes {np.mean(excess):.1%} '
                f'longer than the fastest on average, {max(excess):.0%} at worst'
            )


def main() -> None:
    """Measure, fit and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true')
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = measure(args.quick)
    print(f'# {processor()}, torch {torch.__version__}')
    without, with_gradients = operator_overhead()
    print(f'_OPERATOR = ({1e9 * without:.2g}, {1e9 * with_gradients:.2g})')
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
    report(found)


if __name__ == '__main__':
    main()
