"""Fit the cost model that chooses a convolution's backend, on this machine.

Prints the tables of costs that stand in pelk_mm/ops/backends, and by how much the
backends that they choose are slower than the fastest ones measured. The model is of one
thread, and its time is the processor's.

    python benchmarks/selection.py            about ten minutes
    python benchmarks/selection.py --quick    a few sizes
"""

import functools
import itertools
import os
import sys
from typing import NamedTuple

import numpy as np
import torch
from ops import GRIDS, grid
from timing import make_parser, median_seconds, prepare

from pelk_mm.ops import choose
from pelk_mm.ops.backends import cpu, torch_conv, torch_fft
from pelk_mm.ops.backends.cpu import costs, library
from pelk_mm.ops.problem import Problem

SIZES = (7, 10, 14, 16, 20, 28, 32, 40, 56, 64, 96, 128)
KERNELS = ((3, 3), (5, 5), (7, 7), (9, 9), (13, 13), (21, 21), (31, 31), (51, 51))
STRIPES = ((5, 11), (5, 13), (13, 5), (5, 31), (31, 5), (5, 51), (51, 5))
PERIPHERAL = tuple(taps for taps in GRIDS if taps > 7)
BATCHES = ((1, 16), (2, 64))
FOURIER = ('fft', 'column_fft')
TORCH = {**torch_conv.TERMS, **torch_fft.TERMS}
# Products of a plane above which slow paths are not waited for.
PATIENCE = {'direct': 4e6, 'pixels': 4e6, 'channels_last': 4e7, 'nchw': 4e6}
PATIENCE_BACKWARD = 2e6


class Measured(NamedTuple):
    """What was timed of a problem.

    Attributes:
        owner: Instruction set of the compiled kernels, or 'torch'.
        problem: The problem, on planes.
        seconds: Of each cost, by name.
    """

    owner: str
    problem: Problem
    seconds: dict[str, float]


class Work:
    """Tensors of a problem, and its passes on any backend.

    Args:
        problem: The problem.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        channels = problem.shape[1]
        rows, cols = (len(cells) for cells in problem.cells)
        self.weight = torch.randn(channels, rows, cols)
        self.x, self.grad = (
            maps.contiguous(memory_format=problem.memory_format)
            for maps in torch.randn(2, *problem.shape)
        )

    def forward(self, name: str) -> float:
        """Time the forward pass, in seconds."""
        run = choose.BACKENDS[name].forward
        return median_seconds(lambda: run(self.problem, self.x, self.weight, None))

    def backward(self, name: str, needs_x: bool) -> float:
        """Time the gradient to the weight, or both gradients, in seconds."""
        run = choose.BACKENDS[name].backward
        arguments = self.problem, self.x, self.grad, self.weight, needs_x
        return median_seconds(lambda: run(*arguments))


def transposition(problem: Problem) -> float:
    """Time a change of layout by what two of them add to other work.

    On all processors, summed over them: they share the memory, which sets the pace.
    """
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    small = problem._replace(kernel=(3, 3), grid=None)
    without, with_two = (
        Work(small._replace(channels_last=layout)).forward('direct')
        for layout in (False, True)
    )
    torch.set_num_threads(1)
    return threads * max(with_two - without, 0.2 * with_two) / 2


def measure_compiled(problem: Problem) -> dict[str, float]:
    """Time the passes of the compiled kernels in the instruction set that is on."""
    runs = {name: (name, problem) for name in FOURIER}
    if problem.grid is None:
        pixels = problem._replace(channels_last=True)
        runs |= {
            'direct': ('direct', problem),
            'blocks': ('pixels', problem),
            'pixels': ('pixels', pixels),
        }
    seconds = {'transpose': transposition(problem)}
    for name, (backend, each) in runs.items():
        if each.pixels * each.kernel[0] * each.kernel[1] > PATIENCE.get(backend, 1e99):
            continue
        work = Work(each)
        seconds[name] = work.forward(backend)
        seconds[f'{name}_weight'] = work.backward(backend, False)
        if backend in FOURIER:
            seconds[f'{name}_both'] = work.backward(backend, True)
    return seconds


def measure_torch(problem: Problem) -> dict[str, float]:
    """Time the passes of torch's backends."""
    products = problem.pixels * problem.kernel[0] * problem.kernel[1]
    seconds = {}
    work = Work(problem)
    for name in ('channels_last', 'nchw', 'torch_fft'):
        if products < PATIENCE.get(name, 1e99):
            seconds[name] = work.forward(name)
        if name == 'torch_fft' or products < PATIENCE_BACKWARD:
            seconds[f'{name}_weight'] = work.backward(name, False)
    return seconds


def measure(quick: bool) -> list[Measured]:
    """Time everything."""
    sizes = SIZES[2::4] if quick else SIZES
    kernels = [*KERNELS, *STRIPES, *((taps, taps, True) for taps in PERIPHERAL)]
    # Kernels are clipped to the map: on small ones many are the same.
    problems = {
        Problem(
            (*batch, size, size),
            (min(rows, 2 * size - 1), min(cols, 2 * size - 1)),
            grid(rows) if shared else None,
        ): None
        for size, batch, (rows, cols, *shared) in itertools.product(
            sizes, BATCHES, kernels
        )
        if not shared or rows < 2 * size
    }
    found = []
    for index, problem in enumerate(problems):
        print(f'\r{index + 1} of {len(problems)}', end='', file=sys.stderr, flush=True)
        for name in cpu.instruction_sets():
            os.environ[library.ENVIRONMENT_VARIABLE] = name
            found.append(Measured(name, problem, measure_compiled(problem)))
        if problem.grid is None:
            found.append(Measured('torch', problem, measure_torch(problem)))
    os.environ.pop(library.ENVIRONMENT_VARIABLE, None)
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


def terms_of(owner: str, problem: Problem) -> dict[str, tuple[float, ...]]:
    """Of each cost of an owner, what a plane takes, the share of a call first."""
    if owner == 'torch':
        terms = {name: of(problem) for name, of in TORCH.items()}
    else:
        lanes = library.LANES[owner]
        terms = {name: of(problem, lanes) for name, of in costs.TERMS.items()}
    return {name: (1 / problem.planes, *each) for name, each in terms.items()}


def print_table(owner: str, found: list[Measured]) -> dict[str, tuple[float, ...]]:
    """Fit, print and return the costs of an owner."""
    table = {}
    print(f'{owner!r}: {{')
    for name in terms_of(owner, found[0].problem):
        pairs = [
            (
                terms_of(owner, each.problem)[name],
                1e9 * each.seconds[name] / each.problem.planes,
            )
            for each in found
            if each.owner == owner and name in each.seconds
        ]
        if not pairs:
            continue
        rows, times = map(np.array, zip(*pairs, strict=True))
        solution = fit(rows, times)
        error = np.median(np.abs(rows @ solution / times - 1))
        table[name] = tuple(solution)
        numbers = ', '.join(f'{number:.3g}' for number in solution)
        print(f'    {name!r}: ({numbers}),  # median error {100 * error:.0f} %')
    print('}')
    return table


def measured_costs(each: Measured) -> dict[str, tuple[float, ...]]:
    """Costs that would give the times measured: a call takes them and planes nothing.

    What was not measured takes forever.
    """
    return {
        name: (1e9 * each.seconds.get(name, float('inf')), *(0.0 for _ in terms[1:]))
        for name, terms in terms_of(each.owner, each.problem).items()
    }


def report(found: list[Measured]) -> None:
    """Print how much slower the chosen backends are than the fastest ones measured."""
    fitted = dict(costs.COSTS)
    for owner in cpu.instruction_sets():
        os.environ[library.ENVIRONMENT_VARIABLE] = owner
        for passes in (('forward',), ('input', 'weight')):
            excess = []
            for each, layout in itertools.product(found, (False, True)):
                # Expanded kernels are not measured apart from dense ones.
                if each.owner != owner:
                    continue
                problem = each.problem._replace(channels_last=layout)
                costs.COSTS[owner] = fitted[owner]
                chosen = choose.choose(problem, passes)
                costs.COSTS[owner] = measured_costs(each)
                time = functools.partial(choose.expected_time, problem, passes)
                options = itertools.product(cpu.BACKENDS, repeat=len(passes))
                excess.append(time(chosen) / min(map(time, options)) - 1)
            costs.COSTS[owner] = fitted[owner]
            known = np.array(excess)[np.isfinite(excess)]
            print(
                f'# {owner}, {"+".join(passes)}: the chosen backends take '
                f'{known.mean():.1%} longer than the fastest on average, '
                f'{known.max():.0%} at worst; {len(excess) - len(known)} of '
                f'{len(excess)} choices were not measured'
            )
    os.environ.pop(library.ENVIRONMENT_VARIABLE, None)


def main() -> None:
    """Measure, fit and print."""
    parser = make_parser(__doc__, threads=None)
    parser.add_argument('--quick', action='store_true', help='measure a few sizes')
    args = parser.parse_args()
    prepare(1)
    found = measure(args.quick)
    for owner in cpu.instruction_sets():
        costs.COSTS[owner] = print_table(owner, found)
    print_table('torch', found)
    choose._cheapest.cache_clear()
    report(found)


if __name__ == '__main__':
    main()
