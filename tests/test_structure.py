"""The layout: rooms import in one direction, nothing in a circle, no file too long."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'pelk_mm'

#: Rooms of the package that each room may import.
MAY_IMPORT = {
    'ops': set(),
    'layers': {'ops'},
    'checkpoints': set(),
    'backbones': {'ops', 'layers', 'checkpoints'},
    'engine': {'ops', 'layers', 'checkpoints', 'backbones'},
    'sparsity': {'ops', 'layers', 'checkpoints', 'backbones', 'engine'},
    'conversion': {'ops', 'layers', 'checkpoints', 'backbones'},
    'inference': {'ops', 'layers', 'checkpoints', 'backbones', 'conversion'},
    'analysis': {'ops', 'layers', 'checkpoints', 'backbones', 'conversion'},
}

#: Longest source file, in lines, by what its name ends with.
MAX_LINES = {'.py': 450, '.cpp': 500, '.h': 500}


def module_name(path, root):
    parts = path.relative_to(root).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def ancestors(module):
    """The packages around a module, from the outermost."""
    parts = module.split('.')
    return ['.'.join(parts[:i]) for i in range(1, len(parts))]


def imported_names(tree, module, is_package):
    """Yields what each import names, in functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                package = module.split('.') if is_package else module.split('.')[:-1]
                package = package[: len(package) - (node.level - 1)]
                base = '.'.join([*package, *base.split('.')] if base else package)
            for alias in node.names:
                yield base, alias.name


def import_graph(root):
    """The modules of a package that each of its modules imports.

    Importing a module runs the packages around it first. Those that contain the
    importing module are running already and do not count, unless it asks for one of
    their attributes.
    """
    files = {module_name(path, root.parent): path for path in root.rglob('*.py')}
    graph = {}
    for module, path in files.items():
        tree = ast.parse(path.read_text())
        imported = set()
        for base, name in imported_names(tree, module, path.name == '__init__.py'):
            target = f'{base}.{name}'
            if target not in files:
                target = base
            around = set(ancestors(target)) - set(ancestors(module))
            imported |= ({target} | around) & files.keys()
        graph[module] = imported - {module}
    return graph


def find_circle(graph):
    """Modules that import each other in this order, or an empty list."""
    done = set()

    def visit(module, path):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for imported in sorted(graph[module]):
            circle = visit(imported, [*path, module])
            if circle:
                return circle
        done.add(module)
        return []

    for module in sorted(graph):
        circle = visit(module, [])
        if circle:
            return circle
    return []


@pytest.fixture(scope='module')
def graph():
    return import_graph(PACKAGE)


def room_of(module):
    """Folder of the package that a module lies in; None for a file next to them."""
    parts = module.split('.')
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else None


def test_no_circle(graph):
    assert ' -> '.join(find_circle(graph)) == ''


def test_rooms_import_in_one_direction(graph):
    assert {room_of(module) for module in graph} - {None} == MAY_IMPORT.keys()
    wrong = [
        f'{module} imports {target}'
        for module, imported in graph.items()
        for target in sorted(imported)
        if room_of(module) not in (None, room_of(target))
        and room_of(target) is not None
        and room_of(target) not in MAY_IMPORT[room_of(module)]
    ]
    assert wrong == []


def test_package_imports_nothing_around_it():
    """No command line, demo, test or benchmark; they are no part of a wheel."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {'pelk_mm'}
    found = [
        f'{path.relative_to(ROOT)} imports {base}'
        for path in PACKAGE.rglob('*.py')
        for base, _ in imported_names(
            ast.parse(path.read_text()),
            module_name(path, ROOT),
            path.name == '__init__.py',
        )
        if base.split('.')[0] in folders
    ]
    assert found == []


def test_no_long_file():
    files = (
        path
        for folder in ('pelk_mm', 'tools', 'benchmarks', 'configs', 'demo', 'tests')
        for path in (ROOT / folder).rglob('*')
        if path.suffix in MAX_LINES
    )
    lines = {path: len(path.read_text().splitlines()) for path in files}
    assert len(lines) > 50
    assert {
        str(path.relative_to(ROOT)): count
        for path, count in lines.items()
        if count > MAX_LINES[path.suffix]
    } == {}


def unbounded_caches(tree):
    """Names of functions with arguments whose every result is kept."""
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        wanted = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        if not (wanted or node.args.vararg or node.args.kwarg):
            continue
        for decorator in node.decorator_list:
            text = ast.unparse(decorator).removeprefix('functools.')
            if text in ('cache', 'lru_cache(None)', 'lru_cache(maxsize=None)'):
                yield node.name


def test_caches_are_bounded():
    """Images of ever new sizes do not fill the memory."""
    found = [
        f'{path.relative_to(ROOT)}: {name}'
        for path in PACKAGE.rglob('*.py')
        for name in unbounded_caches(ast.parse(path.read_text()))
    ]
    assert found == []


def test_unbounded_caches_are_found():
    text = """
@functools.cache
def constant(): ...
@functools.lru_cache(maxsize=9)
def bounded(a): ...
@functools.cache
def first(a): ...
@lru_cache(maxsize=None)
def second(*, a): ...
@cache
def third(*a): ...
"""
    assert [*unbounded_caches(ast.parse(text))] == ['first', 'second', 'third']


#: What every torch from 2.6 on has.
KEPT = {
    '_BatchNorm',
    '_C',
    '_disabled_torch_function_impl',
    '_pytree',
    '_weights_only_unpickler',
}


def private_names_of_torch(tree):
    """Names that torch may drop or rename with any version."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute):
            names = ast.unparse(node).split('.')
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or '').split('.'), *(n.name for n in node.names)]
        if names and names[0] in ('torch', 'nn', 'F') and set(names) - KEPT:
            yield from (
                name
                for name in names
                if name.startswith('_') and not name.endswith('__') and name not in KEPT
            )


def test_private_names_of_torch_are_in_one_file():
    """There, each has an answer for a torch that does not have it."""
    found = {
        f'{path.relative_to(ROOT)}: {name}'
        for path in PACKAGE.rglob('*.py')
        if path.name != '_torch_compat.py'
        for name in private_names_of_torch(ast.parse(path.read_text()))
    }
    assert found == set()


def test_private_names_of_torch_are_found():
    text = """
from torch._dynamo import config
from torch.utils import _python_dispatch as dispatch
from torch.utils._pytree import tree_map
nn.modules.module._has_any_global_hook()
torch.__version__, nn.modules.batchnorm._BatchNorm, other._hidden
"""
    assert set(private_names_of_torch(ast.parse(text))) == {
        '_dynamo',
        '_python_dispatch',
        '_has_any_global_hook',
    }


@pytest.fixture
def package(tmp_path):
    """Writes a package of these files and texts; returns its import graph."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / 'toy' / f'{name.replace("__", "/")}.py'
            path = path.with_name(path.name.replace('init.py', '__init__.py'))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return import_graph(tmp_path / 'toy')

    return write


def test_circles_are_found_wherever_the_import_is(package):
    inside = 'def f():\n    from .b import x\n'
    typing = 'if TYPE_CHECKING:\n    from toy import a\n'
    graph = package(init='', a=inside, b=typing, c='import toy.a\n')
    assert graph['toy.c'] == {'toy.a'}
    assert find_circle(graph) == ['toy.a', 'toy.b', 'toy.a']


def test_packages_run_before_their_modules(package):
    graph = package(
        init='',
        room__init='from .first import x\n',
        room__first='from ..other import y\n',
        room__second='',
        other='from toy.room.second import z\n',
    )
    assert graph['toy.other'] == {'toy.room', 'toy.room.second'}
    assert find_circle(graph) == [
        'toy.other',
        'toy.room',
        'toy.room.first',
        'toy.other',
    ]


def test_attribute_of_the_surrounding_package_counts(package):
    graph = package(init='from . import a\n', a='from toy import VERSION\n')
    assert find_circle(graph) == ['toy', 'toy.a', 'toy']
