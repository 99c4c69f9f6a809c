"""What the triton kernels are made of, counted without a GPU.

Every kernel that a convolution starts is compiled ahead of time by triton and read
back with the tools that its wheel carries (ptxas, cuobjdump, nvdisasm). Per kernel:
registers, stack (spills), shared memory, warps per multiprocessor, for each pipe the
time that its instructions take, loops counted as often as they run. The busiest pipe
bounds a kernel's time from below; the kernels of a pass run one after the other. Times
are in picoseconds per pixel and channel. They are counts, not measured on a GPU.

    python benchmarks/gpu_kernels.py --arch sm_80 sm_86 sm_90 sm_100
    python benchmarks/gpu_kernels.py --cases 'peripheral 51' --json counts.json

Needs the package triton; TRITON_INTERPRET must not be set.
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from sass import (
    ARCHITECTURES,
    PORT,
    Instruction,
    count_cycles,
    parse_resources,
    parse_sass,
    resident_warps,
)

from pelk_mm.ops.backends import triton as backend
from pelk_mm.ops.backends.triton import availability, variants
from pelk_mm.ops.problem import Problem, dtype_name

PELK_51 = (9, 8, 4, 2, 1, 1, 1, 1, 1, 2, 4, 8, 9)
PELK_101 = (17, 16, 8, 4, 2, *(1,) * 7, 2, 4, 8, 16, 17)
#: Kernel size, sharing grid and dtype of each case.
CASES: dict[str, tuple[tuple[int, int], tuple[int, ...] | None, torch.dtype]] = {
    'peripheral 51': ((51, 51), PELK_51, torch.bfloat16),
    'peripheral 101': ((101, 101), PELK_101, torch.bfloat16),
    'dense 31': ((31, 31), None, torch.bfloat16),
    'stripe 51 x 5': ((51, 5), None, torch.bfloat16),
    'stripe 5 x 51': ((5, 51), None, torch.bfloat16),
    'peripheral 51, float16': ((51, 51), PELK_51, torch.float16),
    'peripheral 51, float32': ((51, 51), PELK_51, torch.float32),
}
PASSES = ('forward', 'weight gradient')


# ------------------------------------------------------------------ what is started


#: Of each loop, how often it runs every time that it is reached.
Trips = tuple[tuple[float, ...], ...]


class Launch(NamedTuple):
    """A kernel as it is started: programs, arguments, and trips of its loops."""

    kernel: str
    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    trips: Trips


def record(
    case: str, work: str, shape: tuple[int, ...], channels_last: bool, arch: str
) -> list[Launch]:
    """Kernels that a pass of a case starts on a GPU, in order; nothing is computed."""
    size, grid, dtype = CASES[case]
    (conv,) = backend.BACKENDS
    memory = torch.channels_last if channels_last else torch.contiguous_format
    maps = torch.empty(shape, dtype=dtype, device='meta').to(memory_format=memory)
    parameters = (len(grid), len(grid)) if grid else size
    weight = torch.empty(shape[1], *parameters, dtype=dtype, device='meta')
    problem = Problem.of(maps, weight, grid)
    capability = int(arch.removeprefix('sm_')) // 10
    plan, tile = conv.plan(problem, weight, capability)
    found: list[Launch] = []

    def keep(
        kernel: Any, programs: Sequence[int], _: str, *arguments: Any, **constants: Any
    ) -> None:
        names = [p.name for p in kernel.params]
        given = dict(zip(names, arguments, strict=False))
        described = tuple(
            a.dtype if isinstance(a, torch.Tensor) else a for a in arguments
        )
        trips = _trips(kernel.__name__, given, plan, tile)
        count = programs[0] * (programs[1] if len(programs) > 1 else 1)
        name = f'{kernel.__module__.rpartition(".")[2]}.{kernel.__name__}'
        found.append(Launch(name, count, described, constants, trips))

    with (
        mock.patch.object(availability, 'launch', keep),
        mock.patch.object(availability, 'capability', return_value=capability),
    ):
        if work == 'forward':
            conv.forward(problem, maps, weight, None)
        else:
            conv.backward(problem, maps, maps, weight, False)
    return found


def _trips(name: str, given: dict[str, Any], plan: Any, tile: Any) -> Trips:
    """How often each loop of a kernel runs whenever it is reached."""
    if name == 'convolve':
        phases = Counter(product.phase for product in plan.products)
        return tuple((plan.steps(tile) * phases[i],) for i in range(plan.phases))
    if name == 'correlate':
        splits = -(-given['n_blocks'] // given['split_blocks'])
        steps = given['n_blocks'] / splits / variants.DEPTH
        return ((steps,),) * plan.split.row
    if name == 'add_partial':
        counts = Counter(term[0] for term in plan.terms)
        columns = given['n_column_cells']
        shared = ((columns,),) if columns < given['n_taps'] else ()
        return tuple(counts.values()), (given['n_splits'],), *shared
    return ()


# ------------------------------------------------------------------ compiling


def signature(kernel: Any, launch: Launch) -> tuple[dict[str, str], dict[Any, Any]]:
    """Types of a kernel's arguments and what is known of them, as triton asks."""
    names = {torch.float32: 'fp32', torch.bfloat16: 'bf16', torch.float16: 'fp16'}
    names |= {torch.int32: 'i32', torch.int64: 'i64'}
    types: dict[str, str] = {}
    known = {}
    for number, parameter in enumerate(kernel.params):
        if parameter.is_constexpr:
            types[parameter.name] = 'constexpr'
            continue
        value = launch.arguments[number]
        if isinstance(value, torch.dtype):
            types[parameter.name] = f'*{names[value]}'
            if not parameter.do_not_specialize_on_alignment:
                known[(number,)] = [['tt.divisibility', 16]]
        elif value is None:
            types[parameter.name] = 'constexpr'
        else:
            is_float = isinstance(value, float)
            types[parameter.name] = (
                'fp32' if is_float else parameter.annotation_type or 'i32'
            )
    return types, known


class Compiled(NamedTuple):
    """What became of a kernel."""

    registers: int
    stack: int
    shared: int
    code: list[Instruction]


def compile_launch(launch: Launch, arch: str) -> Compiled:
    """Compile a kernel ahead of time, in a cache of its own, and read it back."""
    import triton  # not needed for --help, and slow to import
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tools = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'
    module, _, name = launch.kernel.partition('.')
    pack, products = availability.modules()
    kernel = getattr({'pack': pack, 'products': products}[module], name)
    constants = dict(launch.constants)
    warps = constants.pop('num_warps')
    types, known = signature(kernel, launch)
    for parameter, kind in types.items():
        if kind == 'constexpr' and parameter not in constants:
            constants[parameter] = None
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.object(triton.knobs.cache, 'dir', folder):
            built = triton.compile(
                ASTSource(kernel, types, constexprs=constants, attrs=known),
                target=GPUTarget('cuda', int(arch.removeprefix('sm_')), 32),
                options={'num_warps': warps},
            )
        binary = Path(folder) / 'kernel.cubin'
        binary.write_bytes(built.asm['cubin'])
        usage, sass = (
            subprocess.run(
                [tools / tool[0], *tool[1:], binary],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for tool in (('cuobjdump', '-res-usage'), ('nvdisasm', '-c'))
        )
    return Compiled(*parse_resources(usage), built.metadata.shared, parse_sass(sass))


# ------------------------------------------------------------------ the tables


def measure(launch: Launch, built: Compiled, name: str, values: int) -> dict[str, Any]:
    """Counts of a kernel: per value of the output, in picoseconds where of time."""
    arch = ARCHITECTURES[name]
    warps = launch.constants['num_warps']
    taken = count_cycles(built.code, launch.trips, arch)
    c = launch.constants
    if 'DEPTH' in c and 'tensor' not in taken:
        # Blackwell's instructions, of one thread for all, do not carry the shape.
        steps = sum(map(sum, launch.trips)) / warps
        rows, columns = c['ROWS'], c.get('COLUMNS') or c['LAGS']
        taken['tensor'] = steps * rows * columns * c['DEPTH'] / arch.tensor
        operands = steps * (rows + columns) * c['DEPTH'] * 2 / PORT
        taken['shared'] = taken.get('shared', 0) + operands
    scale = launch.programs * warps / values / arch.processors / arch.clock * 1000
    pipes = {pipe: cycles * scale for pipe, cycles in taken.items()}
    busiest = max(pipes, key=pipes.__getitem__)
    return {
        'kernel': launch.kernel.partition('.')[2],
        'registers': built.registers,
        'stack': built.stack,
        'shared': built.shared,
        'warps': resident_warps(built.registers, built.shared, warps, arch),
        'of': arch.warps,
        'pipes': pipes,
        'busiest': busiest,
        'bound': pipes[busiest],
    }


def count(
    names: Iterable[str],
    archs: Sequence[str],
    shape: tuple[int, ...],
    channels_last: bool,
    jobs: int,
) -> list[dict[str, Any]]:
    """Count every pass of some cases on some architectures."""
    passes = [
        (case, work, name, record(case, work, shape, channels_last, name))
        for case in names
        for work in PASSES
        for name in archs
    ]
    wanted = {
        _key(launch, name): (launch, name)
        for _, _, name, launches in passes
        for launch in launches
    }
    built: dict[str, Compiled] = {}
    with ProcessPoolExecutor(jobs) as pool:
        futures = {key: pool.submit(compile_launch, *v) for key, v in wanted.items()}
        for key, future in futures.items():
            built[key] = future.result()
    values = shape[0] * shape[1] * shape[2] * shape[3]
    found = []
    for case, work, name, launches in passes:
        (rows, columns), _, dtype = CASES[case]
        arch = ARCHITECTURES[name]
        kernels = [
            measure(launch, built[_key(launch, name)], name, values)
            for launch in launches
        ]
        peak = arch.fma * arch.processors * arch.clock / 1000
        found.append(
            {
                'case': case,
                'pass': work,
                'arch': name,
                'gpu': arch.gpu,
                'kernels': _merged(kernels),
                'bound': sum(kernel['bound'] for kernel in kernels),
                'memory': 2 * dtype.itemsize / arch.bandwidth,
                'dense': rows * columns / peak,
                'dtype': dtype_name(dtype),
            }
        )
    return found


def _key(launch: Launch, arch: str) -> str:
    """What a kernel's binary depends on."""
    kinds = [
        a if isinstance(a, torch.dtype | None) else type(a) for a in launch.arguments
    ]
    return repr((launch.kernel, kinds, sorted(launch.constants.items()), arch))


def _merged(kernels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Launches of one kernel as one: it runs once per chunk of scratch."""
    found: dict[str, dict[str, Any]] = {}
    for kernel in kernels:
        first = found.setdefault(kernel['kernel'], dict(kernel, bound=0.0, pipes={}))
        first['bound'] += kernel['bound']
        for pipe, time in kernel['pipes'].items():
            first['pipes'][pipe] = first['pipes'].get(pipe, 0.0) + time
    return list(found.values())


def table(found: list[dict[str, Any]]) -> str:
    """The counts as Markdown."""
    pipes = ('tensor', 'fma', 'integer', 'load/store', 'shared', 'issue')
    lines = [
        '| case | pass | GPU | kernel | registers | stack | shared KB | warps | '
        + ' | '.join(pipes)
        + ' | bound | memory | dense |',
        '|---' * (11 + len(pipes)) + '|',
    ]
    for each in found:
        about = f'| {each["case"]} | {each["pass"]} | {each["arch"]} '
        for kernel in each['kernels']:
            times = ' | '.join(f'{kernel["pipes"].get(p, 0):.2f}' for p in pipes)
            lines.append(
                f'{about}| {kernel["kernel"]} | {kernel["registers"]} | '
                f'{kernel["stack"]} | {kernel["shared"] / 1024:.0f} | '
                f'{kernel["warps"]} of {kernel["of"]} | {times} | '
                f'{kernel["bound"]:.2f} | | |'
            )
        lines.append(
            f'{about}| **all** {"| " * (4 + len(pipes))}| {each["bound"]:.1f} | '
            f'{each["memory"]:.1f} | {each["dense"]:.0f} |'
        )
    return '\n'.join(lines)


def main() -> None:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--arch', nargs='+', default=['sm_90'], choices=ARCHITECTURES)
    parser.add_argument('--cases', nargs='+', default=list(CASES), choices=CASES)
    parser.add_argument(
        '--shape',
        nargs=4,
        type=int,
        default=(2, 46, 128, 512),
        metavar=('N', 'C', 'H', 'W'),
        help='of the map (default: 2 46 128 512)',
    )
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--jobs', type=int, default=2, help='compilers at a time')
    parser.add_argument('--json', type=Path, help='file for all counts')
    options = parser.parse_args()
    if os.environ.get('TRITON_INTERPRET', '0') not in ('', '0'):
        parser.error('TRITON_INTERPRET is set, which compiles nothing; unset it')
    reason = availability.load()
    if isinstance(reason, str):
        parser.error(reason)
    found = count(
        options.cases,
        options.arch,
        tuple(options.shape),
        options.channels_last,
        options.jobs,
    )
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
