"""Bring the backbone of a trained segmenter or detector into its deployment form."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import nn

from pelk_mm.backbones import LargeKernelBackbone
from pelk_mm.checkpoints.files import (
    CheckpointError,
    check_destination,
    write_checkpoint,
)

from .notes import plain_meta
from .trained import DEPLOYED, build_model, fill, load_config, load_weights

#: Side of the random image on which the two forms are compared.
PROBE_SIZE = 128
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
    weights, meta = load_weights(checkpoint)
    if meta.get(DEPLOYED):
        raise CheckpointError(
            f'{checkpoint} is in its deployment form already; nothing to do'
        )
    fill(model, weights, checkpoint)
    report = _switch(backbone)
    cfg.model.backbone.deploy = True
    meta = {**plain_meta(meta), 'cfg': cfg.pretty_text, DEPLOYED: True}
    write_checkpoint(out, model.state_dict(), meta)
    return report


def deploy_backbones(model: nn.Module) -> None:
    """Bring the backbones of this package in a model into their deployment form.

    What is in that form already is left as it is.

    Args:
        model: A model in evaluation mode, or a backbone.

    Raises:
        RuntimeError: If a norm cannot be folded; the message names it. The backbone is
            then as it was.
    """
    for module in list(model.modules()):
        if isinstance(module, LargeKernelBackbone) and not module.deploy:
            module.switch_to_deploy()


def _build(path: Path) -> tuple[Config, nn.Module, LargeKernelBackbone]:
    """Build a config's model, whose backbone is one of ours in its training form."""
    cfg = load_config(path)
    if cfg.model.backbone.get('deploy'):
        raise CheckpointError(
            f'config {path} has backbone.deploy=True, so its backbone is in its '
            'deployment form already; give the config that the model was trained with'
        )
    model = build_model(cfg)
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, LargeKernelBackbone):
        raise CheckpointError(
            f'the backbone of config {path} is {type(backbone).__name__}, which '
            'has no deployment form; PeLK, SLaK and RepLKNet have one'
        )
    return cfg, model, backbone


def _switch(backbone: LargeKernelBackbone) -> DeployReport:
    """Bring a backbone into its deployment form and compare the two on an image."""
    channels = next(backbone.downsample_layers.parameters()).shape[1]
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, PROBE_SIZE, PROBE_SIZE, generator=generator)
    kinds, size = _contents(backbone)
    with torch.no_grad():
        before = backbone(image)
        try:
            deploy_backbones(backbone)
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
