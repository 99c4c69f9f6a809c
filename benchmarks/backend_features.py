"""What each backend can compute, by device, as docs/performance.md shows it.

Nothing is timed and nothing runs: every backend is asked, by `why_not`, as if it stood
on each machine of the table, so that the tables are the same wherever they are made.
What a backend refuses has its reason below.

    python benchmarks/backend_features.py
    python benchmarks/backend_features.py --write docs/performance.md
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from timing import make_parser
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from pelk_mm.files import replace_marked
from pelk_mm.layers import make_sharing_grid
from pelk_mm.ops.backends.base import Backend
from pelk_mm.ops.backends.cpu import library
from pelk_mm.ops.backends.triton import availability
from pelk_mm.ops.choose import BACKENDS
from pelk_mm.ops.problem import Problem, dtype_name

#: In the page between the lines of this name.
MARK = 'backend_features'
SHAPE = (2, 46, 128, 128)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
#: Kernels by what the page calls them.
KERNELS = {
    'dense': ((31, 31), None),
    'stripes': ((51, 5), None),
    'peripheral': ((51, 51), make_sharing_grid(51, 2)),
}
LAYOUTS = {'contiguous': False, 'channels_last': True}
NO = '–'


class Machine(NamedTuple):
    """What backends ask of where they run.

    Attributes:
        name: What the page calls it.
        device: Type of torch's device.
        instruction_sets: Those of the compiled kernels; empty where there are none.
        hip: Version of ROCm that torch is built for, or None.
        capability: First number of the GPU's compute capability.
    """

    name: str
    device: str
    instruction_sets: Sequence[str] = ('portable',)
    hip: str | None = None
    capability: int = availability.LEAST_CAPABILITY


MACHINES = (
    Machine('CPU, x86-64', 'cpu', tuple(library.LANES)),
    Machine('CPU, other', 'cpu'),
    Machine('CPU, kernels not built', 'cpu', ()),
    Machine('NVIDIA GPU, Ampere or later', 'cuda'),
    Machine(
        'NVIDIA GPU, earlier', 'cuda', capability=availability.LEAST_CAPABILITY - 1
    ),
    Machine('AMD GPU (ROCm)', 'cuda', hip='6'),
    Machine('Intel GPU', 'xpu'),
)


@contextlib.contextmanager
def standing_on(machine: Machine, instruction_set: str | None) -> Iterator[None]:
    """Have backends answer as they would on a machine, with triton installed.

    Args:
        machine: The machine.
        instruction_set: What the compiled kernels use; None where there are none.
    """
    modules = mock.Mock(), mock.Mock()
    with contextlib.ExitStack() as stack:
        for place, name, value in (
            (library, 'instruction_set', lambda: instruction_set),
            (availability, 'load', lambda: modules),
            (availability, 'interpreted', lambda: False),
            (availability, 'capability', lambda: machine.capability),
            (availability, '_failures', {}),
            (torch.cuda, 'is_available', lambda: machine.device == 'cuda'),
            (torch.version, 'hip', machine.hip),
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        yield


class Reasons:
    """Numbers the reasons that tables refer to, in the order of their first use."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def cell(self, reason: str) -> str:
        """What a cell shows instead of a feature."""
        number = self._numbers.setdefault(reason, len(self._numbers) + 1)
        return f'{NO} ({number})'

    def lines(self) -> list[str]:
        """A numbered list."""
        return [
            f'{number}. {reason[0].upper()}{reason[1:]}.'
            for reason, number in self._numbers.items()
        ]


def make_problem(kernel: str, layout: str, dtype: torch.dtype, device: str) -> Problem:
    """The problem of a kernel, layout and data type on a device."""
    size, grid = KERNELS[kernel]
    return Problem(SHAPE, size, grid, dtype, device, LAYOUTS[layout])


def answers(
    backend: Backend, machine: Machine, dtype: torch.dtype
) -> dict[tuple[str, str], str | None]:
    """Why a backend cannot compute each kernel in each layout, or None.

    Args:
        backend: The backend.
        machine: Where it stands: with all of its instruction sets alike.
        dtype: Data type.

    Raises:
        ValueError: The instruction sets differ, for which the table has no place.
    """
    found = []
    for instruction_set in machine.instruction_sets or (None,):
        with standing_on(machine, instruction_set):
            found.append(
                {
                    case: backend.why_not(make_problem(*case, dtype, machine.device))
                    for case in itertools.product(KERNELS, LAYOUTS)
                }
            )
    if found[1:] != found[:-1]:
        raise ValueError(
            f'{backend.name} answers differently with the instruction sets of '
            f'{machine.name}; give each a column'
        )
    return found[0]


def device_cell(backend: Backend, machine: Machine, reasons: Reasons) -> str:
    """Data types in which a backend computes at least one kernel on a machine."""
    refused = {}
    for dtype in DTYPES:
        found = list(answers(backend, machine, dtype).values())
        if None not in found:
            refused[dtype_name(dtype)] = found[0]
    if len(refused) == len(DTYPES):
        return reasons.cell(next(iter(refused.values())))
    return f'all but {", ".join(refused)}' if refused else 'all'


def accepted(backend: Backend, names: Sequence[str], axis: int) -> str:
    """Kernels or layouts that a backend computes wherever it runs at all.

    Args:
        backend: The backend.
        names: Their names.
        axis: Which part of a case they are: 0 for kernels, 1 for layouts.
    """
    refused = set()
    for machine, dtype in itertools.product(MACHINES, DTYPES):
        found = answers(backend, machine, dtype)
        able = {case[axis] for case, reason in found.items() if reason is None}
        if able:
            refused |= set(names) - able
    left = [name for name in names if name not in refused]
    return 'all' if len(left) == len(names) else ', '.join(left) or NO


def overrides(backend: Backend, *methods: str) -> bool:
    """Whether a backend has its own of at least one of the base class's methods."""
    return any(getattr(type(backend), m) is not getattr(Backend, m) for m in methods)


def gradients(backend: Backend) -> str:
    """How a backend computes gradients to the input and to the weight."""
    if overrides(backend, 'backward'):
        return 'yes, in one pass'
    return 'yes' if overrides(backend, 'dense_gradient') else 'to the input alone'


def partial(backend: Backend) -> str:
    """How a backend writes a part of a larger map's channels."""
    own = overrides(backend, 'forward_into') and overrides(backend, 'backward_into')
    return 'in place' if own else 'with a copy'


def chosen(backend: Backend) -> str:
    """When a backend is chosen that nobody asked for."""
    if not backend.stands_in:
        return 'by expected time'
    for machine, dtype in itertools.product(MACHINES, DTYPES):
        for case, reason in answers(backend, machine, dtype).items():
            problem = make_problem(*case, dtype, machine.device)
            if reason is None and math.isfinite(backend.cost(problem, ('forward',))):
                return 'where no other can'
    return 'only where timed'


def recorded(backend: Backend, reasons: Reasons, symbolic: bool, onnx: bool) -> str:
    """Whether an export or a trace by torch's operators alone records a backend.

    Args:
        backend: The backend.
        reasons: Where its reason goes.
        symbolic: Whether sizes of the map are symbolic.
        onnx: Whether the export is one to ONNX.
    """
    problem = make_problem('dense', 'contiguous', torch.float32, 'cpu')
    if symbolic:
        sizes = ShapeEnv()
        height, width = (sizes.create_unbacked_symint() for _ in range(2))
        problem = problem._replace(shape=(*SHAPE[:2], height, width))
    with (
        standing_on(MACHINES[0], 'portable'),
        mock.patch.object(torch.onnx, 'is_in_onnx_export', return_value=onnx),
    ):
        reason = backend.why_not(problem._replace(plain=True))
    return 'yes' if reason is None else reasons.cell(reason)


def table(columns: Sequence[str], cell: Callable[[Backend, str], str]) -> Iterator[str]:
    """Lines of a Markdown table with a row per backend."""
    yield f'| backend | {" | ".join(columns)} |'
    yield '|---' * (1 + len(columns)) + '|'
    for name, backend in BACKENDS.items():
        cells = (cell(backend, column) for column in columns)
        yield f'| `{name}` | {" | ".join(cells)} |'


def format_features() -> str:
    """The tables and the reasons, as the page has them."""
    reasons = Reasons()
    machines = {machine.name: machine for machine in MACHINES}
    features: dict[str, Callable[[Backend], str]] = {
        'kernels': lambda b: accepted(b, list(KERNELS), 0),
        'layouts': lambda b: accepted(b, list(LAYOUTS), 1),
        'gradients': gradients,
        'partial convolution': partial,
        'export, trace': lambda b: recorded(b, reasons, False, False),
        'with symbolic sizes': lambda b: recorded(b, reasons, True, False),
        'to ONNX': lambda b: recorded(b, reasons, False, True),
        'chosen': chosen,
    }
    lines = [
        *table(list(machines), lambda b, name: device_cell(b, machines[name], reasons)),
        '',
        *table(list(features), lambda b, name: features[name](b)),
        '',
        *reasons.lines(),
    ]
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = make_parser(__doc__, threads=None)
    parser.add_argument(
        '--write', type=Path, metavar='PAGE', help='put the tables into a page instead'
    )
    args = parser.parse_args()
    if args.write is None:
        print(format_features())
        return
    try:
        replace_marked(args.write, MARK, format_features())
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
