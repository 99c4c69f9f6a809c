"""Bring the backbone of a trained segmenter or detector into its deployment form."""

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from pelk_mm.backbones import LargeKernelBackbone
from pelk_mm.checkpoints.files import (
    CheckpointError,
    check_destination,
    first_line,
    read_checkpoint,
    write_checkpoint,
)
from pelk_mm.checkpoints.weights import find_weights
from pelk_mm.config_types import find_framework

from .notes import plain_meta

#: Side of the random image on which the two forms are compared.
PROBE_SIZE = 128
#: Entry of ``meta`` that marks a checkpoint in deployment form.
DEPLOYED = 'backbone_deployed'
#: Largest difference between the two forms, relative to a map's largest value.
TOLERANCE = 1e-4


class DeployReport(NamedTuple):
    """What became of a backbone.

    Attributes:
        backbone: Its type.
        folded: How many modules of each type are gone.
        parameters: Parameters before and after.
        difference: Largest difference of a feature map on a random image, relative
            to the map's largest value.
    """

    backbone: str
    folded: dict[str, int]
    parameters: tuple[int, int]
    difference: float


def deploy_checkpoint(
    config: str | Path, checkpoint: str | Path, out: str | Path, force: bool = False
) -> DeployReport:
    """Write the checkpoint of a model whose backbone is in its deployment form.

    The result loads into the same config with ``model.backbone.deploy=True``. It
    appears under its name only when it is complete and reads back as it is.

    Args:
        config: Config file of the whole model.
        checkpoint: Its checkpoint, in the training form.
        out: Path of the result; its ending chooses the format.
        force: Whether to replace an existing file.

    Raises:
        CheckpointError: If a file cannot be read or written, or config and checkpoint
            do not describe one trained model; nothing is left then.
    """
    out = Path(out)
    check_destination(out, force)
    cfg, model, backbone = _build(Path(config))
    weights, meta = _load(checkpoint)
    _fill(model, weights, checkpoint)
    report = _switch(backbone)
    cfg.model.backbone.deploy = True
    meta = {**plain_meta(meta), 'cfg': cfg.pretty_text, DEPLOYED: True}
    write_checkpoint(out, model.state_dict(), meta)
    return report


def _build(path: Path) -> tuple[Config, nn.Module, LargeKernelBackbone]:
    """Build a config's model, whose backbone is one of ours in its training form."""
    if not path.is_file():
        raise CheckpointError(f'config {path} does not exist')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # whatever the code of a config raises
        raise CheckpointError(
            f'config {path} cannot be read: {first_line(error)}'
        ) from error
    if not isinstance(cfg.get('model'), dict) or 'backbone' not in cfg.model:
        raise CheckpointError(f'config {path} has no model with a backbone')
    if cfg.model.backbone.get('deploy'):
        raise CheckpointError(
            f'config {path} has backbone.deploy=True, so its backbone is in its '
            'deployment form already; give the config that the model was trained with'
        )
    init_default_scope(find_framework(cfg) or cfg.get('default_scope') or 'mmengine')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about losses, which are not used here
            model = MODELS.build(cfg.model)
    except Exception as error:  # whatever the constructors of its parts raise
        raise CheckpointError(
            f'the model of config {path} cannot be built: {first_line(error)}'
        ) from error
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, LargeKernelBackbone):
        raise CheckpointError(
            f'the backbone of config {path} is {type(backbone).__name__}, which '
            'has no deployment form; PeLK, SLaK and RepLKNet have one'
        )
    return cfg, model.eval(), backbone


def _load(path: str | Path) -> tuple[Mapping[Any, Any], dict[str, Any]]:
    """Weights and notes of a checkpoint."""
    content = read_checkpoint(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{path} holds a {type(content).__name__}, not a state dict'
        )
    key, weights = find_weights(content, ('state_dict',))
    meta = content.get('meta') if key else None
    if not isinstance(meta, dict):
        meta = {}
    if meta.get(DEPLOYED):
        raise CheckpointError(
            f'{path} is in its deployment form already; nothing to do'
        )
    return weights, meta


def _fill(
    model: nn.Module, state_dict: Mapping[Any, Any], checkpoint: str | Path
) -> None:
    """Load a state dict that must have exactly the model's names and shapes."""
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    given = {name: getattr(v, 'shape', None) for name, v in state_dict.items()}
    problems = {
        'missing': own.keys() - given.keys(),
        'unexpected': given.keys() - own.keys(),
        'wrongly shaped': {n for n in own.keys() & given.keys() if own[n] != given[n]},
    }
    for what, names in problems.items():
        if names:
            shown = ', '.join(map(str, sorted(names)[:3])) + ', ...' * (len(names) > 3)
            raise CheckpointError(
                f'{checkpoint} does not fit the config: {len(names)} {what} '
                f'tensor{"s" * (len(names) > 1)} ({shown}); give the config that it '
                'was trained with'
            )
    model.load_state_dict(state_dict)


def _switch(backbone: LargeKernelBackbone) -> DeployReport:
    """Bring a backbone into its deployment form and compare the two on an image."""
    channels = next(backbone.downsample_layers.parameters()).shape[1]
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, PROBE_SIZE, PROBE_SIZE, generator=generator)
    kinds, size = _contents(backbone)
    with torch.no_grad():
        before = backbone(image)
        try:
            backbone.switch_to_deploy()
        except RuntimeError as error:
            raise CheckpointError(str(error)) from error
        after = backbone(image)
    difference = max(
        ((a - b).abs().max() / a.abs().max()).item()
        for a, b in zip(before, after, strict=True)
    )
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f'the two forms differ by {difference:.1e} on a random image, more than '
            f'{TOLERANCE:.0e}; the checkpoint may hold NaN or vanishing BatchNorm '
            'variances'
        )
    left, left_size = _contents(backbone)
    folded = dict(sorted((kinds - left).items()))
    return DeployReport(type(backbone).__name__, folded, (size, left_size), difference)


def _contents(backbone: nn.Module) -> tuple[Counter[str], int]:
    """Number of modules by type, and number of parameters."""
    kinds = Counter(type(module).__name__ for module in backbone.modules())
    return kinds, sum(parameter.numel() for parameter in backbone.parameters())
