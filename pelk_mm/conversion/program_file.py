"""Reading programs of ``torch.export.save`` that carry no code beside their graph.

``torch.export.load`` unpickles what it cannot read as weights, evaluates expressions of
sizes as Python, writes names into the Python that it generates, and loads compiled
libraries that an archive contains. All of these are refused. torch still advises
against programs from sources that one does not trust.
"""

import ast
import builtins
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch

#: Makes ``torch.load`` refuse all but weights, whatever its caller asks for.
_WEIGHTS_ONLY = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
#: How the names of archived files begin that are pickles of objects.
_OBJECTS = ('custom_obj', 'opaque_obj')
#: What an expression of sizes consists of.
_ARITHMETIC = (
    (ast.Expression, ast.Name, ast.Load, ast.Constant, ast.Call, ast.keyword)
    + (ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop)
    + (ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop)
)
#: Built-in functions that an expression may call; the others reach outside of it.
_CALLED = {'abs', 'bool', 'float', 'int', 'max', 'min', 'pow', 'round'}


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Load a program, with what would run other code than its graph refused.

    Args:
        path: A file of ``torch.export.save``.

    Raises:
        ValueError: If the file contains pickled objects, compiled code or expressions
            of sizes that are more than arithmetic.
        Exception: Whatever ``torch.export.load`` raises at a file that is no program.
    """
    _require_no_code(path)
    with _weights_only():
        return torch.export.load(path)  # noqa: TID251 - its guard is above


@contextmanager
def _weights_only() -> Iterator[None]:
    before = os.environ.get(_WEIGHTS_ONLY)
    os.environ[_WEIGHTS_ONLY] = '1'
    try:
        yield
    finally:
        if before is None:
            del os.environ[_WEIGHTS_ONLY]
        else:
            os.environ[_WEIGHTS_ONLY] = before


def _require_no_code(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            file = PurePosixPath(name)
            if 'aotinductor' in file.parts or file.suffix == '.so':
                raise ValueError(f'{name} in it is compiled code, which is not loaded')
            if file.name.startswith(_OBJECTS):
                raise ValueError(
                    f'{name} in it is a pickled object, which could run code'
                )
            if file.suffix == '.json':
                _require_plain(json.loads(archive.read(name)))


def _require_plain(node: Any) -> None:
    """Look at the sizes and the names in a description of a graph, at any depth."""
    nodes = [node]
    while nodes:
        node = nodes.pop()
        if isinstance(node, list):
            nodes.extend(node)
        if isinstance(node, dict):
            nodes.extend(node.values())
            if isinstance(node.get('expr_str'), str):
                require_arithmetic(node['expr_str'])
            name = node.get('name')
            if isinstance(name, str) and not re.fullmatch(r'[\w.]*', name):
                raise ValueError(f'a name in it is {name[:80]!r}, which could run code')


def require_arithmetic(text: str) -> None:
    """Refuse what is more than names, numbers, operators and calls of plain names.

    Args:
        text: Such as ``2*s0 + 1`` or ``Max(1, Symbol('s0', positive=True))``.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        nodes = list(ast.walk(ast.parse(text, mode='eval')))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        nodes = [ast.Lambda()]
    for node in nodes:
        plain = isinstance(node, _ARITHMETIC)
        if isinstance(node, ast.Name):
            builtin = hasattr(builtins, node.id) and node.id not in _CALLED
            plain = not builtin and '__' not in node.id
        if isinstance(node, ast.Call):
            plain = isinstance(node.func, ast.Name)
        if isinstance(node, ast.Constant):
            text_of = isinstance(node.value, str) and re.fullmatch(r'\w+', node.value)
            plain = isinstance(node.value, (int, float)) or bool(text_of)
        if not plain:
            raise ValueError(
                f'a size in it is {text[:80]!r}, which is more than arithmetic and '
                'could run code'
            )
