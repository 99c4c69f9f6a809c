"""What `gpu_kernels.py` reads of a compiled kernel: loops, pipes, cycles, registers.

Works on the text of triton's own nvdisasm and cuobjdump. Throughputs are those of the
maker's tables: lanes per cycle of each pipe of a multiprocessor.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Architecture(NamedTuple):
    """A GPU of an architecture, from its maker's tables.

    Attributes:
        gpu: Its name.
        processors: Multiprocessors.
        clock: Boost clock, GHz.
        bandwidth: Of its memory, TB/s.
        tensor: Multiply-adds of 16-bit operands per cycle and multiprocessor.
        fma: Float32 multiply-adds, likewise.
        warps: Most warps on a multiprocessor.
        shared: Shared memory of a multiprocessor, KB; a program may have one less.
    """

    gpu: str
    processors: int
    clock: float
    bandwidth: float
    tensor: int
    fma: int
    warps: int
    shared: int


ARCHITECTURES = {
    'sm_80': Architecture('A100', 108, 1.41, 2.0, 1024, 64, 64, 164),
    'sm_86': Architecture('RTX 3090', 82, 1.695, 0.936, 256, 128, 48, 100),
    'sm_90': Architecture('H100', 132, 1.83, 3.35, 2048, 128, 64, 228),
    'sm_100': Architecture('B200', 148, 1.85, 8.0, 4096, 128, 64, 228),
}
#: Lanes per cycle and multiprocessor of what every architecture has alike.
ISSUE, INTEGER, LOAD_STORE, SPECIAL = 128, 64, 32, 16
#: Bytes per cycle of the first-level cache and shared memory.
PORT = 128

#: First and last instruction.
Loop = tuple[int, int]


class Instruction(NamedTuple):
    """An instruction: its opcode with modifiers, operands, and where it may jump."""

    opcode: str
    operands: str
    target: int | None = None


def parse_sass(text: str) -> list[Instruction]:
    """Instructions of a kernel in nvdisasm's output, jumps to indices of others."""
    labels: dict[str, int] = {}
    found: list[Instruction] = []
    for line in text.splitlines():
        if label := re.match(r'\s*(\.L_\w+):', line):
            labels[label[1]] = len(found)
        code = re.match(
            r'\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;', line
        )
        if code:
            found.append(Instruction(code[1], code[2]))
    for index, (opcode, operands, _) in enumerate(found):
        target = re.search(r'\.L_\w+', operands)
        if opcode.startswith('BRA') and target and target[0] in labels:
            found[index] = Instruction(opcode, operands, labels[target[0]])
    return found


def find_loops(code: Sequence[Instruction]) -> list[Loop]:
    """First and last instruction of every loop, in the order of the first ones.

    Those that only wait are left out: a few instructions that try again, jumps back
    from code after the end, and the jump to itself there.
    """
    exits = [index for index, each in enumerate(code) if each.opcode == 'EXIT']
    ends: dict[int, int] = {}
    for index, (_, _, target) in enumerate(code[: exits[-1] if exits else None]):
        if target is not None and target < index:
            ends[target] = index
    waits = ('NANOSLEEP', 'SYNCS', 'UTCATOMSWS')
    return sorted(
        (
            (first, last)
            for first, last in ends.items()
            if last - first >= 8
            or not any(i.opcode.startswith(waits) for i in code[first : last + 1])
        ),
        key=lambda loop: (loop[0], -loop[1]),
    )


def unrolled(code: Sequence[Instruction], loops: Sequence[Loop]) -> list[list[Loop]]:
    """Loops that the compiler made of one: the main part and, after it, the rest.

    They follow one another within the same loop, and the first loads a multiple of what
    the second loads.
    """
    groups: list[list[Loop]] = []
    for loop in loops:
        before = groups[-1][-1] if groups else None
        if (
            before is not None
            and len(groups[-1]) == 1
            and before[1] < loop[0]
            and _around(before, loops) == _around(loop, loops)
        ):
            first, second = (_loads(code, each) for each in (before, loop))
            if second and first > second and first % second == 0:
                groups[-1].append(loop)
                continue
        groups.append([loop])
    return groups


def _around(loop: Loop, loops: Sequence[Loop]) -> list[Loop]:
    return [each for each in loops if each[0] <= loop[0] and loop[1] < each[1]]


def _loads(code: Sequence[Instruction], loop: Loop) -> int:
    return sum(i.opcode.startswith('LDG') for i in code[loop[0] : loop[1] + 1])


def times_run(
    code: Sequence[Instruction], trips: Sequence[Sequence[float]]
) -> list[float]:
    """How often each instruction runs.

    Args:
        code: The kernel.
        trips: Of each loop of the source in order, how often it runs every time that
            it is reached.

    Raises:
        ValueError: The compiler made another number of loops.
    """
    groups = unrolled(code, find_loops(code))
    if len(groups) != len(trips):
        raise ValueError(
            f'the compiler made {len(groups)} loops of this kernel, and the count '
            f'knows how often {len(trips)} run'
        )
    times = [1.0] * len(code)
    for group, runs in zip(groups, trips, strict=True):
        each = [sum(runs) / len(runs)]
        if len(group) == 2:
            factor = _loads(code, group[0]) // _loads(code, group[1])
            main = sum(run // factor for run in runs) / len(runs)
            each = [main, each[0] - main * factor]
        for (first, last), average in zip(group, each, strict=True):
            for index in range(first, last + 1):
                times[index] *= average
    return times


def lane_bytes(opcode: str) -> int:
    """Bytes that a load or store moves per lane."""
    parts = opcode.split('.')
    if parts[0] in ('LDSM', 'STSM', 'LDMATRIX'):
        return 4 * next((int(part) for part in parts if part in ('2', '4')), 1)
    sizes = {'128': 16, '64': 8, 'U16': 2, 'S16': 2, 'U8': 1, 'S8': 1}
    return next((sizes[part] for part in parts if part in sizes), 4)


def warp_products(opcode: str) -> int:
    """Multiply-adds of a matrix instruction, a warp's share of it."""
    if match := re.match(r'HGMMA\.(\d+)x(\d+)x(\d+)', opcode):
        rows, columns, depth = map(int, match.groups())
        return rows * columns * depth // 4
    if match := re.match(r'HMMA\.(16)(8)(16|8)', opcode):
        rows, columns, depth = map(int, match.groups())
        return rows * columns * depth
    return 0


def operand_bytes(opcode: str, operands: str) -> int:
    """Bytes of shared memory that a matrix instruction reads, a warp's share."""
    match = re.match(r'HGMMA\.(\d+)x(\d+)x(\d+)', opcode)
    if not match:
        return 0
    rows, columns, depth = map(int, match.groups())
    # The first operand may be in registers, then it stands before the descriptor.
    in_registers = re.match(r'R\d+, R\d+, gdesc', operands) is not None
    return (columns + rows * (not in_registers)) * depth * 2 // 4


def cycles(instruction: Instruction, arch: Architecture) -> dict[str, float]:
    """Cycles of a multiprocessor that an instruction takes a warp, on each pipe."""
    opcode, operands, _ = instruction
    name = opcode.split('.')[0]
    taken = {'issue': 32 / ISSUE}
    if name in ('HMMA', 'HGMMA'):
        taken['tensor'] = warp_products(opcode) / arch.tensor
        taken['shared'] = operand_bytes(opcode, operands) / PORT
    elif name in ('FFMA', 'FADD', 'FMUL', 'HFMA2', 'HADD2', 'HMUL2', 'FSEL'):
        taken['fma'] = 32 / arch.fma
    elif name == 'IMAD':
        taken['fma'] = 32 / INTEGER
    elif name in ('LDG', 'LD', 'STG', 'ST'):
        taken['load/store'] = max(32 / LOAD_STORE, 32 * lane_bytes(opcode) / PORT)
    elif name == 'LDGSTS':
        taken['load/store'] = max(32 / LOAD_STORE, 32 * lane_bytes(opcode) / PORT)
        taken['shared'] = 32 * lane_bytes(opcode) / PORT
    elif name in ('LDS', 'STS', 'LDSM', 'STSM', 'SHFL'):
        taken['shared'] = max(32 / LOAD_STORE, 32 * lane_bytes(opcode) / PORT)
    elif name in ('MUFU', 'I2F', 'F2I', 'F2F', 'I2FP', 'POPC'):
        taken['special'] = 32 / SPECIAL
    elif not name.startswith('U') and name not in _NO_PIPE:
        taken['integer'] = 32 / INTEGER
    return taken


#: Instructions that only take an issue slot.
_NO_PIPE = {'BRA', 'BAR', 'EXIT', 'NOP', 'S2R', 'S2UR', 'CS2R', 'LDC', 'DEPBAR'} | {
    *('LDGDEPBAR', 'WARPSYNC', 'WARPGROUP', 'MEMBAR', 'FENCE', 'BSSY', 'BSYNC'),
    *('R2UR', 'ERRBAR', 'CCTL', 'SYNCS', 'ELECT', 'ULDC', 'ARRIVES', 'LDCU'),
}


def count_cycles(
    code: Sequence[Instruction], trips: Sequence[Sequence[float]], arch: Architecture
) -> dict[str, float]:
    """Cycles that a warp's instructions take on each pipe."""
    total: Counter[str] = Counter()
    for instruction, times in zip(code, times_run(code, trips), strict=True):
        for pipe, taken in cycles(instruction, arch).items():
            total[pipe] += taken * times
    return dict(total)


def parse_resources(text: str) -> tuple[int, int]:
    """Registers and bytes of stack in the output of ``cuobjdump -res-usage``."""
    match = re.search(r'REG:(\d+) STACK:(\d+)', text)
    if match is None:
        raise ValueError(f'no resource usage in {text!r}')
    return int(match[1]), int(match[2])


def resident_warps(registers: int, shared: int, warps: int, arch: Architecture) -> int:
    """Warps of a kernel that a multiprocessor holds at a time."""
    per_warp = -(-registers * 32 // 256) * 256
    programs = min(
        arch.warps // warps,
        65536 // (per_warp * warps),
        (arch.shared << 10) // (shared + 1024),
        32,
    )
    return programs * warps
