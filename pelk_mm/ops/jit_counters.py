"""Our operators in the FLOP counters of mmengine and fvcore.

Both trace a model with torch.jit and look every operator up in a table of their own;
what is not there counts as nothing. The tables get our operators when the module that
has them is imported, so that neither package is needed or loaded here. As everywhere in
these tables a multiply-add is one FLOP; a peripheral convolution counts as our backends
compute it, with one multiply-add per parameter and pixel.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from math import prod
from types import ModuleType
from typing import Any

Handle = Callable[[Sequence[Any], Sequence[Any]], int]


def _multiply_adds(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-adds of a call, from its arguments in the traced graph."""
    x, weight = (value.type().sizes() for value in inputs[:2])
    return prod(x) * weight[1] * weight[2]


def _activations(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Elements of a call's result."""
    return prod(outputs[0].type().sizes())


#: Tables of handles by operator: their modules, their names and what belongs in them.
TABLES: dict[str, dict[str, Handle]] = {
    'mmengine.analysis.complexity_analysis': {
        '_DEFAULT_SUPPORTED_FLOP_OPS': _multiply_adds,
        '_DEFAULT_SUPPORTED_ACT_OPS': _activations,
    },
    'fvcore.nn.flop_count': {'_DEFAULT_SUPPORTED_OPS': _multiply_adds},
    'fvcore.nn.activation_count': {'_DEFAULT_SUPPORTED_OPS': _activations},
}


def add_handles(module: ModuleType) -> None:
    """Add our operators to the tables of one of the modules in `TABLES`."""
    for name, handle in TABLES[module.__name__].items():
        table = getattr(module, name, None)
        if table is None:
            warnings.warn(
                f'{module.__name__} has no {name}: it will not count large kernels',
                stacklevel=2,
            )
            continue
        for operator in ('depthwise_conv2d', 'peripheral_conv2d'):
            table[f'pelk_mm::{operator}'] = handle


class _AfterImport(MetaPathFinder):
    """Adds the handles to a module of `TABLES` when its code has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: Any = None
    ) -> ModuleSpec | None:
        if fullname not in TABLES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run: Callable[[ModuleType], None] = spec.loader.exec_module

        def run_and_add(module: ModuleType) -> None:
            run(module)
            add_handles(module)

        spec.loader.exec_module = run_and_add  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Add the handles to the tables that are loaded, and later to the others."""
    for name in TABLES:
        if name in sys.modules:
            add_handles(sys.modules[name])
    sys.meta_path.insert(0, _AfterImport())
