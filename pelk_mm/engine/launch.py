"""Run the training and test tools of the framework that a config is written for."""

import argparse
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm_cli import run_script

#: Distributions that provide each framework: OpenMMLab's, and the maintained fork.
DISTRIBUTIONS = {
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
}


class LaunchError(ValueError):
    """A command line or config that no run can start from."""


def find_framework(cfg: Config) -> str:
    """Find the framework that a config's ``default_scope`` names.

    Raises:
        LaunchError: If it is neither mmseg nor mmdet.
    """
    scope = cfg.get('default_scope')
    if scope not in DISTRIBUTIONS:
        raise LaunchError(
            f'{cfg.filename} has default_scope {scope!r}; set it to '
            f'{" or ".join(map(repr, DISTRIBUTIONS))}, the framework to run'
        )
    return scope


def find_tool(framework: str, tool: str) -> Path:
    """Find an installed framework's ``tools/{tool}.py``.

    Raises:
        LaunchError: If the framework is not installed, or without its tools.
    """
    spec = find_spec(framework)
    if spec is None or spec.origin is None:
        openmmlab, fork = DISTRIBUTIONS[framework]
        raise LaunchError(
            f'{framework} is not installed; `pip install {openmmlab}`, or {fork} where '
            'onedl-mmengine and onedl-mmcv are installed'
        )
    package = Path(spec.origin).parent
    # A wheel has the tools in .mim, an editable checkout next to the package.
    for root in (package / '.mim', package.parent):
        path = root / 'tools' / f'{tool}.py'
        if path.is_file():
            return path
    raise LaunchError(
        f'{framework} in {package} has no tools/{tool}.py; install '
        f'{" or ".join(DISTRIBUTIONS[framework])} from its wheel'
    )


def _data_roots(node: Any) -> Iterator[str]:
    """Iterate over the ``data_root`` entries of nested config dicts and lists."""
    if isinstance(node, dict):
        if node.get('data_root'):
            yield node['data_root']
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from _data_roots(value)


def require_data_roots(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Raise a `LaunchError` if the folder of a data set does not exist.

    Args:
        cfg: The config.
        loaders: Names of the dataloaders whose data sets are needed.
    """
    for loader in loaders:
        for root in _data_roots(cfg.get(loader)):
            # With a scheme, say s3, a file backend reads it.
            if '://' not in root and not Path(root).is_dir():
                raise LaunchError(
                    f'data_root {root!r} of {loader} does not exist; put the data '
                    f'set there or set --cfg-options '
                    f'{loader}.dataset.data_root=/path/to/it'
                )


def is_config_name(argument: str) -> bool:
    """Whether a command-line argument names a config file."""
    return '=' not in argument and Path(argument).suffix in ('.py', '.json', '.yaml')


#: Dataloaders that each tool needs.
LOADERS = {
    'train': ('train_dataloader', 'val_dataloader'),
    'test': ('test_dataloader',),
}


def hand_over(tool: str) -> None:
    """Run the installed framework's own ``tools/{tool}.py`` on this command line.

    The config is read once beforehand, to find its framework and to stop with one
    line where the run could not start. All flags are the framework's.

    Args:
        tool: ``train`` or ``test``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args, _ = parser.parse_known_args()
    # Only the framework knows which arguments are values of its flags.
    config = next((arg for arg in sys.argv[1:] if is_config_name(arg)), None)
    try:
        if config is None:
            framework = 'mmseg'  # to print its usage: both have these flags
        else:
            if not Path(config).is_file():
                raise LaunchError(f'config {config} does not exist')
            cfg = Config.fromfile(config)
            cfg.merge_from_dict(args.cfg_options or {})
            framework = find_framework(cfg)
            require_data_roots(cfg, LOADERS[tool])
        path = find_tool(framework, tool)
    except LaunchError as error:
        sys.exit(f'{tool}: {error}')
    try:
        run_script(path, sys.argv[1:], parser.prog)
    except CheckpointError as error:  # a checkpoint that does not fit the backbone
        sys.exit(f'{tool}: {error}')
