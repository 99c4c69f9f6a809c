"""Backbones to study: named architectures, or those of a config and a checkpoint."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import initialize
from torch import Tensor

from pelk_mm.backbones import LargeKernelBackbone, PeLK, RepLKNet, SLaK
from pelk_mm.checkpoints.files import CheckpointError, first_line, read_checkpoint
from pelk_mm.checkpoints.misfit import COUNTER
from pelk_mm.checkpoints.rules import BACKBONE_TYPES, backbone_prefixes
from pelk_mm.checkpoints.weights import (
    AVERAGED,
    check_tensors,
    find_weights,
    select_weights,
)
from pelk_mm.config_types import find_class, find_framework

#: Class and ``arch`` of each architecture by the name that tools take.
ARCHITECTURES: dict[str, tuple[type[LargeKernelBackbone], str]] = {
    f'{cls.__name__.lower()}-{arch}': (cls, arch)
    for cls in (PeLK, SLaK, RepLKNet)
    for arch in cls.arch_settings
}


def find_architecture(name: str) -> str:
    """The name of an architecture as `ARCHITECTURES` has it, given in any case.

    Raises:
        ValueError: If there is none of that name.
    """
    lower = {each.lower(): each for each in ARCHITECTURES}
    if name.lower() in lower:
        return lower[name.lower()]
    close = [lower[each] for each in get_close_matches(name.lower(), lower, n=3)]
    hint = f'did you mean {" or ".join(close)}?' if close else ''
    raise ValueError(
        f'there is no architecture {name!r}; '
        + (hint or f'choose one of {", ".join(ARCHITECTURES)}')
    )


def arch_config(name: str) -> dict[str, Any]:
    """Config of a backbone by the name of its architecture, in any case.

    Raises:
        ValueError: If there is none of that name.
    """
    cls, arch = ARCHITECTURES[find_architecture(name)]
    return dict(type=cls, arch=arch)


def find_backbone(cfg: Config) -> tuple[dict[str, Any], str]:
    """The config of the first backbone of ours in a model's, and its name there.

    Raises:
        ValueError: If there is none.
    """
    scope = find_framework(cfg) or cfg.get('default_scope')
    for name, node in _dicts(cfg.get('model')):
        kind = find_class(node['type'], scope)
        if isinstance(kind, type) and issubclass(kind, LargeKernelBackbone):
            return {**node, 'type': kind}, name
    ours = ', '.join(BACKBONE_TYPES.values())
    raise ValueError(f'the model of {cfg.filename} has no backbone of {ours}')


def _dicts(node: Any, name: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    """Dicts with a ``type`` in a config, the outermost first, and their names."""
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, dict):
        if node.get('type') is not None:
            yield name, node
        children = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    for key, child in children:
        yield from _dicts(child, f'{name}.{key}'.lstrip('.'))


def _build(cfg: Mapping[str, Any], device: str) -> LargeKernelBackbone:
    """Build a backbone of a config, with the default initialisation.

    Raises:
        ValueError: If an argument is wrong.
    """
    left_out = ('type', 'init_cfg', 'partial_weights')
    arguments = {key: value for key, value in cfg.items() if key not in left_out}
    try:
        with torch.device(device):
            return find_class(cfg['type'])(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f'the backbone cannot be built: {first_line(error)}'
        ) from error


def random_backbone(cfg: Mapping[str, Any], seed: int = 0) -> LargeKernelBackbone:
    """A backbone with the random weights that a training starts from.

    Args:
        cfg: The backbone's config.
        seed: Seed of the weights; torch's own random state stays as it is.

    Raises:
        ValueError: If the config is wrong.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _build(cfg, 'cpu')
        # As init_weights does, without its line for every parameter.
        initialize(backbone, backbone.init_cfg)
    return backbone.eval()


def load_backbone(
    cfg: Mapping[str, Any], name: str, checkpoint: Path
) -> LargeKernelBackbone:
    """A backbone with the weights of a file, in whichever form these are.

    Args:
        cfg: The backbone's config.
        name: Its name in the model, such as ``backbone``.
        checkpoint: File of the model, or of the backbone alone.

    Raises:
        ValueError: If the config is wrong, or the file cannot be read or does not fit.
    """
    content = read_checkpoint(checkpoint)
    try:
        key, _ = find_weights(content)
        weights = select_weights(content, True if key in AVERAGED else None).tensors
        weights = {k.removeprefix('module.'): v for k, v in weights.items()}
        prefix = f'{name}.'
        if not any(key.startswith(prefix) for key in weights):
            prefix = next(iter(backbone_prefixes(weights)), '')
        weights = {
            k.removeprefix(prefix): v
            for k, v in weights.items()
            if k.startswith(prefix)
        }
        check_tensors(weights)
        backbone = _in_form_of(weights, cfg)
        # What does not fit is refused by the backbone with cause and remedy.
        backbone.load_state_dict(weights, strict=False, assign=True)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from error
    return backbone.eval()


def _in_form_of(
    weights: Mapping[str, Tensor], cfg: Mapping[str, Any]
) -> LargeKernelBackbone:
    """A backbone without memory, in that form whose names are closest to the weights'.

    The config's own comes first among equals.
    """
    merging = (
        [] if issubclass(find_class(cfg['type']), PeLK) else ['small_kernel_merged']
    )
    options = ['deploy', *merging]
    forms = product((False, True), repeat=len(options))
    candidates = [
        _build({**cfg, **form}, 'meta')
        for form in ({}, *(dict(zip(options, form, strict=True)) for form in forms))
    ]
    names = _without_counters(weights)
    return min(
        candidates, key=lambda each: len(_without_counters(each.state_dict()) ^ names)
    )


def _without_counters(names: Iterable[str]) -> set[str]:
    return {name for name in names if COUNTER not in name}
