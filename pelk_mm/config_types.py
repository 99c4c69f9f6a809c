"""Reading configs: files, what a ``type`` means, and the framework they are for.

A ``type`` is a name, a name with its scope as in ``mmseg.FCNHead``, a path as in
``mmseg.models.FCNHead``, or a class.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

#: Endings of the files that mmengine reads as configs.
CONFIG_SUFFIXES = ('.py', '.json', '.yaml', '.yml')

#: Distributions that provide each framework: OpenMMLab's, and the maintained fork.
FRAMEWORKS = {
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
}

#: No number in a model's config is larger; so many layers would never be built.
MAX_NUMBER = 2**31 - 1


class ConfigError(ValueError):
    """A config that cannot be read."""


def read_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config file.

    Args:
        path: The file.
        options: Values that replace or extend its own, as ``--cfg-options`` gives them.

    Raises:
        ConfigError: If there is no such file, or its code or an option is wrong, or its
            model has a number beyond `MAX_NUMBER`.
    """
    if not Path(path).is_file():
        raise ConfigError(f'config {path} does not exist')
    if Path(path).suffix not in CONFIG_SUFFIXES:
        raise ConfigError(
            f'config {path} ends in none of {", ".join(CONFIG_SUFFIXES)}, which '
            'mmengine reads'
        )
    try:
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(dict(options or {}))
        list(_types(cfg.get('model')))  # imports the classes of new-style configs
        _require_sizes(cfg.get('model'))
        scope = cfg.get('default_scope')
        if not isinstance(scope, (str, NoneType)):
            raise ConfigError(f'default_scope {scope!r:.80} is not a name')
    except MemoryError as error:  # which is also how Python's parser ends at nesting
        raise ConfigError(
            f'config {path} cannot be read: its code is nested too deeply, or there is '
            'not enough of the memory that it asks for'
        ) from error
    except (Exception, SystemExit) as error:  # whatever the code of a config raises
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f'config {path} cannot be read: {lines[0]}') from error
    return cfg


def entry(node: Any, *keys: str) -> Any:
    """Look up an entry in nested dicts of a config.

    Args:
        node: A config, a dict in one, or whatever stands in the place of one.
        *keys: A key in it, a key in what is found there, and so on.

    Returns:
        The value; None where a key is missing or its owner is no dict.
    """
    for key in keys:
        node = node.get(key) if isinstance(node, (dict, Config)) else None
    return node


def section(node: Any, *keys: str) -> dict[str, Any]:
    """Look up a dict nested in a config, as `entry` does.

    Returns:
        The dict itself, to read or to change; an empty one where there is none.
    """
    found = entry(node, *keys)
    return found if isinstance(found, dict) else {}


def type_name(kind: Any) -> str:
    """Name of the class that a ``type`` means, without scope or path."""
    if isinstance(kind, str):
        return kind.rpartition('.')[2]
    return getattr(kind, '__name__', str(kind))


def find_class(kind: Any, scope: str | None = None) -> Any:
    """Find the class that the ``type`` of a model or of a part of it means.

    Args:
        kind: The ``type``.
        scope: Scope in which a plain name is looked up; mmengine's root by default.

    Returns:
        The class, or None where a name is not registered.
    """
    if not isinstance(kind, str):
        return kind
    try:
        with MODELS.switch_scope_and_registry(scope) as registry:
            return registry.get(kind)
    # How mmengine says that it is not there, and importing that its scope is no name.
    except (RuntimeError, TypeError, ValueError):
        return None


def _model_entries(model: Any) -> Iterator[tuple[str, Any]]:
    """A model's config and all that is nested in it, by name, outermost first."""
    nodes = deque([('model', model)])
    while nodes:
        name, node = nodes.popleft()
        yield name, node
        items: Any = ()
        if isinstance(node, dict):
            items = node.items()
        elif isinstance(node, (list, tuple)):
            items = enumerate(node)
        nodes.extend((f'{name}.{key}', value) for key, value in items)


def _types(model: Any) -> Iterator[Any]:
    """The ``type`` entries of a model's config, outermost first."""
    kinds = (entry(node, 'type') for _, node in _model_entries(model))
    return (kind for kind in kinds if kind is not None)


def _require_sizes(model: Any) -> None:
    """Raise an error if a number in a model's config is beyond any use."""
    for name, node in _model_entries(model):
        if isinstance(node, int) and abs(node) > MAX_NUMBER:
            # Python writes no number of more than some thousand digits.
            value = node if node.bit_length() < 128 else f'of {node.bit_length()} bits'
            raise ConfigError(f'{name} is a number beyond {MAX_NUMBER}: {value}')


def _framework_of(kind: Any, scope: str | None) -> str | None:
    """The framework that a ``type`` belongs to by its scope, its path or its class."""
    if isinstance(kind, str) and kind.partition('.')[0] in FRAMEWORKS:
        return kind.partition('.')[0]
    found = find_class(kind, scope)
    # A class of the user's own counts as its base classes do.
    for base in getattr(found, '__mro__', ()):
        package = base.__module__.partition('.')[0]
        if package in FRAMEWORKS:
            return package
    if found is None:
        for framework in FRAMEWORKS:
            if find_spec(framework) and find_class(kind, framework) is not None:
                return framework
    return None


def find_framework(cfg: Any) -> str | None:
    """Find the framework that a config is written for.

    That is its ``default_scope``, or else the framework of its model's class, or else
    of the first part inside it that belongs to one.

    Args:
        cfg: A config, of which ``default_scope`` and ``model`` are read.

    Returns:
        A key of `FRAMEWORKS`, or None.

    Raises:
        ImportError: If the framework's modules cannot be imported.
    """
    scope = cfg.get('default_scope')
    if scope in FRAMEWORKS:
        return scope
    found = (_framework_of(kind, scope) for kind in _types(cfg.get('model')))
    return next(filter(None, found), None)
