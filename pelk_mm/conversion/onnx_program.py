"""Write a program of ``torch.export`` as ONNX."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelk_mm.checkpoints.files import CheckpointError, first_line

from .onnx_export import OnnxReport, Say, finish
from .onnx_file import check_onnx_path, require_packages, set_notes, to_onnx
from .program_file import load_program

#: Size of an open axis of which neither example nor limits are told.
USUAL_SIZE = 64


def export_program(
    source: str | Path,
    out: str | Path,
    *,
    half: bool = False,
    force: bool = False,
    say: Say = print,
) -> OnnxReport:
    """Write a program that ``torch.export.save`` has written as ONNX.

    Args:
        source: The program, with torch's operators alone, as `pelk_mm.ops.plain` lets
            models be exported.
        out: The file to write, ending in ``.onnx``.
        half: Whether weights and sums are float16; inputs and outputs stay float32.
        force: Whether to replace an existing file.
        say: Called with a line at each step.

    Raises:
        CheckpointError: If anything is missing or wrong; nothing is left then.
    """
    source, out = Path(source), Path(out)
    require_packages()
    check_onnx_path(out, force)
    if not source.is_file():
        raise CheckpointError(f'program {source} does not exist')
    try:
        program = load_program(source)
    except Exception as error:  # whatever a parser raises at meaningless bytes
        raise CheckpointError(
            f'{source} is no program of torch.export.save: {first_line(error)}'
        ) from error
    _require_torch_operators(program, source)
    say('computing what torch gives for random inputs')
    cases = _cases(program, source)
    say('converting')
    proto = to_onnx(program)
    set_notes(proto, dict(torch=torch.__version__, program=source.name))
    return finish(proto, out, cases, half, None, say)


def _require_torch_operators(
    program: torch.export.ExportedProgram, source: Path
) -> None:
    for node in program.graph.nodes:
        if getattr(node.target, 'namespace', 'aten') == 'pelk_mm':
            raise CheckpointError(
                f'{source} calls {node.target}, which ONNX has not; export the model '
                'again within `pelk_mm.ops.plain()`'
            )


def _cases(
    program: torch.export.ExportedProgram, source: Path
) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Random inputs of three sizes and the program's outputs."""
    values = {
        node.name: node.meta.get('val')
        for node in program.graph.nodes
        if node.op == 'placeholder'
    }
    inputs: list[Any] = [
        values.get(name) for name in program.graph_signature.user_inputs
    ]
    for value in inputs:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            kind = getattr(value, 'dtype', type(value).__name__)
            raise CheckpointError(
                f'{source} has an input of {kind}; those of torch.float32 can be '
                'exported and verified'
            )
    generator = torch.Generator().manual_seed(0)
    module = program.module()
    cases = []
    for number in range(3):
        shapes = [_shape(program, value, number) for value in inputs]
        tensors = [torch.randn(shape, generator=generator) for shape in shapes]
        try:
            with torch.no_grad():
                outputs = module(*tensors)
        except Exception as error:  # whatever a check in the program raises
            shown = ', '.join(' x '.join(map(str, shape)) for shape in shapes)
            raise CheckpointError(
                f'{source} itself does not run on {shown}, which its limits allow: '
                f'{first_line(error)}'
            ) from error
        flat, _ = torch.utils._pytree.tree_flatten(outputs)
        cases.append((tensors, flat))
    return cases


def _shape(
    program: torch.export.ExportedProgram, value: Tensor, number: int
) -> tuple[int, ...]:
    """Shape of an input in one of three cases: as traced, larger, and smaller."""
    shape = []
    for size in value.shape:
        if isinstance(size, int):
            shape.append(size)
            continue
        expression = size.node.expr
        chosen = {
            symbol: _size(program.range_constraints.get(symbol), number)
            for symbol in expression.free_symbols
        }
        shape.append(int(expression.subs(chosen)))
    return tuple(shape)


def _size(limits: Any, number: int) -> int:
    """A size of an open axis within its limits, in one of three cases."""
    lower = max(int(limits.lower), 1) if limits is not None else 1
    upper = (
        int(limits.upper) if limits is not None and limits.upper.is_finite else 2**31
    )
    usual = min(max(lower, 2 if upper <= USUAL_SIZE else USUAL_SIZE), upper)
    larger = min(usual + usual // 2 + 1, upper)
    return [usual, larger, lower if lower >= USUAL_SIZE // 2 else usual][number]
