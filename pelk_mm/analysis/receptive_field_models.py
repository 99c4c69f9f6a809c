"""What receptive fields are measured of: a backbone, and how pixels reach it."""

from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from pelk_mm.backbones import LargeKernelBackbone, RepLKNet
from pelk_mm.checkpoints.files import CheckpointError, first_line, read_checkpoint
from pelk_mm.checkpoints.misfit import COUNTER
from pelk_mm.checkpoints.weights import check_tensors, select_weights
from pelk_mm.config_types import find_framework, read_config, section

from .counting import input_channels
from .open_backbone import (
    ARCHITECTURES,
    arch_config,
    find_architecture,
    load_backbone,
    random_backbone,
)
from .receptive_field_images import Preprocessing

#: Mean and standard deviation of the pixels that RepLKNet-XL was trained with.
_XL_PIXELS = ((127.5,) * 3, (127.5,) * 3)


@dataclass(frozen=True)
class Model:
    """A backbone to measure.

    Attributes:
        name: What it is called.
        weights: Where its weights are from, in words.
        backbone: The backbone.
        preprocess: How pixels become its inputs.
    """

    name: str
    weights: str
    backbone: nn.Module
    preprocess: Preprocessing


def random_model(name: str, seed: int = 0, layer_scale: float | None = None) -> Model:
    """Build an architecture with the random weights that a training starts from.

    Args:
        name: A name of `ARCHITECTURES`.
        seed: Seed of the weights; torch's own random state stays as it is.
        layer_scale: What the layer scales of PeLK and SLaK start from; by default what
            their classes do. RepLKNet has none.

    Raises:
        ValueError: If there is no such architecture.
    """
    name = find_architecture(name)
    cfg, weights = arch_config(name), f'random weights, seed {seed}'
    if layer_scale is not None and cfg['type'] is not RepLKNet:
        cfg['layer_scale_init_value'] = layer_scale
        weights += f', layer scale {layer_scale:g}'
    return Model(name, weights, random_backbone(cfg, seed), _pixels_of(cfg['arch']))


def _pixels_of(arch: str) -> Preprocessing:
    """How pixels become the inputs of a named architecture."""
    return Preprocessing(3, True, *(_XL_PIXELS if arch == 'XL' else ()))


def trained_model(source: str, checkpoint: str) -> Model:
    """Build a backbone and load its weights.

    Args:
        source: A config of a segmenter, a detector or a classifier, or a name of
            `ARCHITECTURES`.
        checkpoint: File of the whole model or of the backbone alone.

    Raises:
        ValueError: If the config has no such backbone, its images have neither one
            channel nor three, or the weights do not fit.
    """
    weights = Path(checkpoint)
    if source.lower() in map(str.lower, ARCHITECTURES):
        settings = arch_config(source)
        backbone: nn.Module = load_backbone(settings, 'backbone', weights)
        name = find_architecture(source)
        return Model(name, weights.name, backbone, _pixels_of(settings['arch']))
    cfg = read_config(source)
    backbone = _build_backbone(cfg)
    preprocess = _preprocessing(cfg, backbone)
    if isinstance(backbone, LargeKernelBackbone):
        settings = {**cfg.model.backbone, 'type': type(backbone)}
        backbone = load_backbone(settings, 'backbone', weights)
    else:
        _load(backbone, weights)
    return Model(Path(source).stem, weights.name, backbone, preprocess)


def _build_backbone(cfg: Config) -> nn.Module:
    """Build the backbone of a config's model.

    Raises:
        ValueError: If there is none, or it cannot be built.
    """
    model = cfg.get('model')
    settings = model.get('backbone') if isinstance(model, dict) else None
    if not isinstance(settings, dict):
        raise ValueError(
            f'{cfg.filename} has no model with a backbone; give the config of a '
            'segmenter, a detector or a classifier'
        )
    scope = find_framework(cfg) or cfg.get('default_scope')
    try:
        with DefaultScope.overwrite_default_scope(scope):
            return MODELS.build(settings)
    except Exception as error:  # whatever a constructor raises
        raise ValueError(
            f'the backbone of {cfg.filename} cannot be built: {first_line(error)}'
        ) from error


def _preprocessing(cfg: Config, backbone: nn.Module) -> Preprocessing:
    """How a config's data preprocessor makes inputs of images, as mm reads them.

    Raises:
        ValueError: If the backbone's images have neither one channel nor three.
    """
    channels = input_channels(backbone)
    if channels not in (1, 3):
        raise ValueError(
            f'the backbone of {cfg.filename} takes images of {channels} channels; the '
            'images here are grey or coloured, of 1 or 3'
        )
    settings = section(cfg.model, 'data_preprocessor') or section(
        cfg, 'data_preprocessor'
    )
    rgb = bool(settings.get('bgr_to_rgb') or settings.get('to_rgb'))
    mean, std = settings.get('mean'), settings.get('std')
    return Preprocessing(
        channels,
        rgb,
        (0.0,) if mean is None else tuple(mean),
        (1.0,) if std is None else tuple(std),
    )


def _load(backbone: nn.Module, checkpoint: Path) -> None:
    """Load all weights of another package's backbone.

    Raises:
        CheckpointError: If the file cannot be read, or a part would stay at random.
    """
    content = read_checkpoint(checkpoint)
    try:
        tensors = select_weights(content).tensors
        check_tensors(tensors)
        inside = any(name.startswith('backbone.') for name in tensors)
        prefix = 'backbone.' if inside else ''
        weights = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        missing, _ = backbone.load_state_dict(weights, strict=False)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from error
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(
            f'{checkpoint}: does not fit the backbone: {line}'
        ) from error
    missing = [name for name in missing if COUNTER not in name]
    if missing:
        raise CheckpointError(
            f'{checkpoint}: lacks {len(missing)} tensors of the backbone, a '
            f'{type(backbone).__name__}: {", ".join(missing[:3])}'
        )
