"""Programs of ``torch.export.save``, loaded without running what their files carry.

``torch.export.load`` unpickles custom objects, repeats a load that ``weights_only``
refuses without it, loads compiled libraries, and has sympy evaluate the sizes of open
axes as Python. What a file would need for any of that is refused before.
"""

import ast
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pelk_mm.checkpoints.bounds import allowance
from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.checkpoints.loading import safe_types

#: Parts of a name in the archive that torch unpickles or loads as a library.
_CODE = ('custom_obj_', 'opaque_obj_', 'aotinductor', '.so')

#: Functions of sizes, as torch writes them.
_FUNCTIONS = {
    'Abs',
    'Add',
    'Integer',
    'Mul',
    'Pow',
    'PowByNatural',
    'Rational',
    'CeilDiv',
    'CeilToInt',
    'CleanDiv',
    'FloatTrueDiv',
    'FloorDiv',
    'FloorToInt',
    'Identity',
    'IntTrueDiv',
    'Max',
    'Min',
    'Mod',
    'ModularIndexing',
    'PythonMod',
    'RoundToInt',
    'ToFloat',
    'TruncToFloat',
    'TruncToInt',
    'Where',
    'Eq',
    'Ne',
    'Lt',
    'Le',
    'Gt',
    'Ge',
    'And',
    'Or',
    'Not',
    'ceiling',
    'floor',
}
_NODES = (
    ast.Expression,
    ast.keyword,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.Name,
    ast.Load,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)
#: Longest expression, largest number in it and largest exponent.
_LENGTH, _NUMBER, _EXPONENT = 2000, 1 << 64, 8

#: Operators that read or write files.
_FILES = ('aten::from_file', 'aten::save')

_FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


def load_program(source: Path) -> torch.export.ExportedProgram:
    """Load a program.

    Raises:
        CheckpointError: If the file could run code or reach files; the message goes on
            from its name.
        Exception: Whatever torch raises at a damaged file.
    """
    _require_no_code(source)
    with _weights_only():
        program = torch.export.load(source)  # noqa: TID251 - refused before
    for node in program.graph.nodes:
        if getattr(node.target, '_schema', None) is not None:
            name = node.target._schema.name
            if name in _FILES:
                raise CheckpointError(f'calls {name}, which opens files')
    return program


@contextmanager
def _weights_only() -> Iterator[None]:
    """Have every ``torch.load`` refuse what could run code, whatever it is told."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = '1'
    try:
        with safe_types(()):
            yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def _require_no_code(source: Path) -> None:
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > allowance(source.stat().st_size):
            raise CheckpointError('unpacks to many times its size')
        for entry in entries:
            if any(part in entry.filename for part in _CODE):
                raise CheckpointError(
                    f'holds {entry.filename!r:.80}, which torch would run; export a '
                    'program of tensors and operators alone'
                )
        for entry in entries:
            if entry.filename.endswith('.json'):
                for text in _expressions(json.loads(archive.read(entry))):
                    if not is_plain_expression(text):
                        raise CheckpointError(
                            f'has the size {text!r:.80}, which is no arithmetic'
                        )


def _expressions(document: Any) -> Iterator[Any]:
    """What sympy is given of a program's description."""
    nodes = [document]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            if 'expr_str' in node:
                yield node['expr_str']
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node


def is_plain_expression(text: Any) -> bool:
    """Whether a text is arithmetic with names, small numbers and known functions."""
    if not isinstance(text, str) or len(text) > _LENGTH:
        return False
    try:
        tree = ast.parse(text.strip(), mode='eval')
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    nodes = list(ast.walk(tree))
    symbols = {
        id(n.args[0]) for n in nodes if isinstance(n, ast.Call) and _is_symbol(n)
    }
    return all(id(node) in symbols or _is_plain(node) for node in nodes)


def _is_symbol(call: ast.Call) -> bool:
    """Whether a call is ``Symbol('s0', positive=True)``."""
    return (
        isinstance(call.func, ast.Name)
        and call.func.id == 'Symbol'
        and len(call.args) == 1
        and str(getattr(call.args[0], 'value', '')).isidentifier()
        and all(type(getattr(w.value, 'value', None)) is bool for w in call.keywords)
    )


def _is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return _is_plain_call(node)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (int, float)) and abs(node.value) <= _NUMBER
    if isinstance(node, ast.Name):
        return not node.id.startswith('_')
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _is_small(node.right)
    return isinstance(node, _NODES)


def _is_plain_call(node: ast.Call) -> bool:
    """Whether a call is one of a function of sizes, or makes a symbol or a number."""
    if _is_symbol(node):
        return True
    name = node.func.id if isinstance(node.func, ast.Name) else ''
    if name not in _FUNCTIONS or node.keywords:
        return False
    return 'Pow' not in name or (len(node.args) == 2 and _is_small(node.args[1]))


def _is_small(exponent: ast.AST) -> bool:
    if isinstance(exponent, ast.Call) and ast.unparse(exponent.func) == 'Integer':
        exponent = next(iter(exponent.args), exponent)
    if isinstance(exponent, ast.UnaryOp):
        exponent = exponent.operand
    value = getattr(exponent, 'value', None)
    return type(value) is int and 0 <= value <= _EXPONENT
