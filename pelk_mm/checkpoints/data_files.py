"""Data files and YAML configs, read by mmengine without running what they carry.

mmengine chooses the reader by a file's ending: ``ann_file='train.pkl'`` of a data set,
or a config in ``.yaml``, whose reader knows tags that build any object and call any
function. Both are replaced by readers of the same contents without code.
"""

from typing import Any

import yaml
from mmengine.fileio import PickleHandler, YamlHandler, register_handler
from mmengine.structures import InstanceData

from .arrays import ArrayUnpickler

#: Values that the text of a YAML file may stand for, by aliases of aliases.
MAX_VALUES = 1_000_000

_TRUSTED = 'where you trust it, set PELK_MM_KEEP_LOADERS=1'


class _DataUnpickler(ArrayUnpickler):
    """Unpickler of arrays, sets and mmdet's proposals."""

    allowed = {
        **ArrayUnpickler.allowed,
        ('mmengine.structures.instance_data', 'InstanceData'): InstanceData,
        ('__builtin__', 'set'): set,
        ('builtins', 'set'): set,
    }

    def refuse(self, module: str, name: str) -> str:
        """Explain why a file is not read."""
        return (
            f'a pickled data file asks for {module}.{name}, which could run code; only '
            f'arrays and plain containers are read from it; {_TRUSTED}'
        )


class _PlainLoader(yaml.SafeLoader):
    """YAML without objects; mmengine writes tuples, so these are read."""


def _read_tuple(loader: yaml.SafeLoader, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


def _refuse(loader: yaml.SafeLoader, node: Any) -> Any:
    place = node.start_mark
    raise yaml.constructor.ConstructorError(
        problem=f'line {place.line + 1} has the tag {node.tag}, which could run code; '
        f'only plain values are read; {_TRUSTED}'
    )


_PlainLoader.add_constructor('tag:yaml.org,2002:python/tuple', _read_tuple)
_PlainLoader.add_constructor(None, _refuse)


class PlainPickleHandler(PickleHandler):
    """mmengine's handler, which reads arrays and plain containers alone."""

    def load_from_fileobj(self, file: Any, **options: Any) -> Any:
        """Read an open file.

        Raises:
            pickle.UnpicklingError: If it asks for anything else.
        """
        return _DataUnpickler(file, **options).load()


class PlainYamlHandler(YamlHandler):
    """mmengine's handler, which reads plain values and tuples alone."""

    def load_from_fileobj(self, file: Any, **options: Any) -> Any:
        """Read an open file.

        Raises:
            yaml.constructor.ConstructorError: If it asks for anything else.
            ValueError: If its aliases stand for more values than `MAX_VALUES`.
        """
        options = {'Loader': _PlainLoader, **options}
        content = super().load_from_fileobj(file, **options)
        _require_bounded(content)
        return content


def _require_bounded(content: Any) -> None:
    """Raise an error where aliases repeat values beyond any use, or without end."""
    count, nodes = 0, [content]
    while nodes:
        node = nodes.pop()
        count += 1
        if count > MAX_VALUES:
            raise ValueError(f'its aliases stand for more than {MAX_VALUES:,} values')
        if isinstance(node, dict):
            nodes += node.values()
        elif isinstance(node, (list, tuple, set)):
            nodes += node


def replace_handlers() -> None:
    """Let mmengine read files of these endings with the handlers of this module."""
    register_handler(['pkl', 'pickle'])(PlainPickleHandler)
    register_handler(['yaml', 'yml'])(PlainYamlHandler)
