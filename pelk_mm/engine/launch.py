"""Run the training and test tools of the framework that a config is written for."""

import argparse
import errno
import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from torch import distributed

from pelk_mm.checkpoints.files import CheckpointError, first_line
from pelk_mm.config_types import (
    CONFIG_SUFFIXES,
    FRAMEWORKS,
    ConfigError,
    entry,
    find_framework,
    read_config,
)
from pelk_mm_cli import run_script

from .data_check import DataCheckError
from .finite_loss import NotFiniteError


class LaunchError(ValueError):
    """A command line or config that no run can start from."""


def require_framework(cfg: Config) -> str:
    """Find the framework that a config is written for.

    Raises:
        LaunchError: If neither ``default_scope`` nor the model tells, or what they
            name cannot be imported.
    """
    try:
        framework = find_framework(cfg)
    except ImportError as error:
        raise LaunchError(
            f'the model of {cfg.filename} cannot be imported: {first_line(error)}'
        ) from error
    if framework is None:
        raise LaunchError(
            f'{cfg.filename} has default_scope {cfg.get("default_scope")!r} and no '
            f'model of a framework that runs here; set it to '
            f'{" or ".join(map(repr, FRAMEWORKS))}'
        )
    return framework


def find_tool(framework: str, tool: str) -> Path:
    """Find an installed framework's ``tools/{tool}.py``.

    Raises:
        LaunchError: If the framework is not installed, or without its tools.
    """
    spec = find_spec(framework)
    if spec is None or spec.origin is None:
        openmmlab, fork = FRAMEWORKS[framework]
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
        f'{" or ".join(FRAMEWORKS[framework])} from its wheel'
    )


def require_importable(framework: str) -> None:
    """Raise a `LaunchError` if the models of a framework cannot be imported.

    mmpretrain's import torchvision, whose compiled part fits one torch, and, where
    pycocotools and transformers are installed, models that no present transformers has
    the parts of.
    """
    if framework != 'mmpretrain':
        return
    try:
        import_module('mmpretrain.models')
    except Exception as error:  # of either package, whatever it raises
        major, minor = torch.__version__.split('.')[:2]
        fitting = f'torchvision==0.{int(minor) + 15}.*' if major == '2' else ''
        raise LaunchError(
            f'mmpretrain cannot be imported: {first_line(error)}; for torch '
            f'{torch.__version__} it needs `pip install {fitting or "torchvision"}`, '
            'and an environment without transformers (`pip uninstall transformers`)'
        ) from error


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
    return '=' not in argument and Path(argument).suffix in CONFIG_SUFFIXES


#: Entries of a config that each tool cannot do without.
ENTRIES = {
    'train': ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'),
    'test': ('model', 'test_dataloader', 'test_cfg', 'test_evaluator'),
}


def require_entries(cfg: Config, tool: str) -> None:
    """Raise a `LaunchError` if a config lacks what a tool starts from."""
    missing = [name for name in ENTRIES[tool] if cfg.get(name) is None]
    if missing:
        raise LaunchError(
            f'{cfg.filename} has no {", ".join(missing)}, without which there is '
            f'nothing to {tool}; inherit them from a config of a whole {tool}ing or '
            'add them'
        )


#: Dataloaders that each tool needs.
LOADERS = {
    'train': ('train_dataloader', 'val_dataloader'),
    'test': ('test_dataloader',),
}


def _synchronised_norms(node: Any, path: str) -> Iterator[str]:
    """Iterate over the paths of norms in nested dicts and lists that are SyncBN."""
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            yield path
        children: Iterable[tuple[Any, Any]] = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        return
    for key, child in children:
        yield from _synchronised_norms(child, f'{path}.{key}')


def join_cpu_ranks(cfg: Config) -> list[str]:
    """Join the other processes of a run on the CPU, as mmengine does with GPUs alone.

    It calls ``torch.cuda`` before it connects, and hands the wrapper of the model the
    number of a GPU. A run that is connected already it leaves alone. SyncBNs, which
    torch computes on GPUs alone, become BNs, each with its own process's statistics.

    Args:
        cfg: The config. Of ``env_cfg.dist_cfg`` the timeout counts; gloo is the only
            backend that every torch has for the CPU.

    Returns:
        Settings that its framework's tool needs, for ``--cfg-options``.
    """
    seconds = entry(cfg, 'env_cfg', 'dist_cfg', 'timeout')
    timeout = None if seconds is None else timedelta(seconds=seconds)
    distributed.init_process_group('gloo', timeout=timeout)
    settings = [f'{path}.type=BN' for path in _synchronised_norms(cfg.model, 'model')]
    settings.append('model_wrapper_cfg.device_ids=None')
    if 'model_wrapper_cfg' not in cfg:
        # What mmengine sets where a config has no wrapper.
        unused = bool(cfg.get('find_unused_parameters', False))
        settings += [
            'model_wrapper_cfg.type=MMDistributedDataParallel',
            'model_wrapper_cfg.broadcast_buffers=False',
            f'model_wrapper_cfg.find_unused_parameters={unused}',
        ]
    return settings


#: Error numbers of a full disk, an exhausted quota and a limit on the size of files.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def hand_over(tool: str) -> None:
    """Run the installed framework's own ``tools/{tool}.py`` on this command line.

    The config is read once beforehand, to find its framework and to stop with one
    line where the run could not start. All flags are the framework's. A config that
    names no ``default_scope`` gets the framework's: in mmengine's own, which would be
    taken instead, the names that the framework's classes have as defaults mean nothing.

    Args:
        tool: ``train`` or ``test``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    parser.add_argument('--launcher', default='none')
    args, _ = parser.parse_known_args()
    arguments, settings = sys.argv[1:], list[str]()
    # Only the framework knows which arguments are values of its flags.
    config = next((arg for arg in arguments if is_config_name(arg)), None)
    try:
        if config is None:
            framework = 'mmseg'  # to print its usage: both have these flags
        else:
            cfg = read_config(config, args.cfg_options)
            framework = require_framework(cfg)
            require_entries(cfg, tool)
            require_data_roots(cfg, LOADERS[tool])
            if 'default_scope' not in cfg:
                settings.append(f'default_scope={framework}')
        path = find_tool(framework, tool)
        require_importable(framework)
        if config is not None and args.launcher == 'pytorch' and get_device() == 'cpu':
            settings += join_cpu_ranks(cfg)
    except (LaunchError, ConfigError) as error:
        sys.exit(f'{tool}: {error}')
    if settings:
        arguments += ['--cfg-options', *settings]
    try:
        run_script(path, arguments, parser.prog)
    except (CheckpointError, DataCheckError, NotFiniteError) as error:
        # A checkpoint that does not fit the backbone or cannot be written, a config
        # that does not fit its data, a training that diverged.
        sys.exit(f'{tool}: {error}')
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        place = f' for {error.filename}' if error.filename else ''
        sys.exit(
            f'{tool}: no space is left{place} ({error.strerror}); free some, then go '
            'on with --resume: complete checkpoints are as they were'
        )
