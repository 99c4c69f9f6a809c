"""Backbones to measure: named architectures, or those of config and checkpoint."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from pelk_mm.backbones import LargeKernelBackbone, PeLK, RepLKNet, SLaK
from pelk_mm.checkpoints.files import CheckpointError, first_line, read_checkpoint
from pelk_mm.checkpoints.fit import WeightsError
from pelk_mm.checkpoints.rules import backbone_prefixes
from pelk_mm.checkpoints.weights import check_tensors, select_weights
from pelk_mm.config_types import find_framework, read_config

from .counting import input_channels
from .receptive_field_images import Preprocessing

#: Class and ``arch`` of each architecture by the name that the tool takes.
ARCHITECTURES: dict[str, tuple[Any, str]] = {
    f'{cls.__name__.lower()}-{arch}': (cls, arch)
    for cls in (PeLK, SLaK, RepLKNet)
    for arch in cls.arch_settings
}

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


def _build_architecture(name: str, layer_scale: float | None) -> Model:
    """Build the backbone of an architecture as its class does, without weights."""
    cls, arch = ARCHITECTURES[name]
    scaled = layer_scale is not None and cls is not RepLKNet
    options = {'layer_scale_init_value': layer_scale} if scaled else {}
    pixels = _XL_PIXELS if arch == 'XL' else ()
    return Model(name, '', cls(arch, **options), Preprocessing(3, True, *pixels))


@contextmanager
def _without_init_log() -> Iterator[None]:
    """Keep mmengine from printing how each parameter was initialised."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


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
    with torch.random.fork_rng(devices=[]), _without_init_log():
        torch.manual_seed(seed)
        model = _build_architecture(name, layer_scale)
        model.backbone.init_weights()  # type: ignore[operator]
    weights = f'random weights, seed {seed}'
    if layer_scale is not None and ARCHITECTURES[name][0] is not RepLKNet:
        weights += f', layer scale {layer_scale:g}'
    return Model(name, weights, model.backbone, model.preprocess)


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
    if source.lower() in map(str.lower, ARCHITECTURES):
        name = find_architecture(source)
        model = _build_architecture(name, None)
    else:
        cfg = read_config(source)
        name = Path(source).stem
        backbone = _build_backbone(cfg)
        model = Model(name, '', backbone, _preprocessing(cfg, backbone))
    try:
        tensors = select_weights(read_checkpoint(checkpoint)).tensors
        check_tensors(tensors)
        _load(model.backbone, tensors)
    except CheckpointError as error:
        named = str(checkpoint) in str(error)
        raise CheckpointError(
            str(error) if named else f'{checkpoint}: {error}'
        ) from error
    return Model(name, Path(checkpoint).name, model.backbone, model.preprocess)


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
    settings = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    rgb = bool(settings.get('bgr_to_rgb') or settings.get('to_rgb'))
    mean, std = settings.get('mean'), settings.get('std')
    return Preprocessing(
        channels,
        rgb,
        (0.0,) if mean is None else tuple(mean),
        (1.0,) if std is None else tuple(std),
    )


def _load(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load weights, all of them.

    Raises:
        WeightsError: If a part of the backbone would stay at random.
    """
    ours = isinstance(backbone, LargeKernelBackbone)
    prefixes = backbone_prefixes(tensors) if ours else []
    prefix = 'backbone.'
    if prefix not in prefixes and not any(name.startswith(prefix) for name in tensors):
        prefix = prefixes[0] if prefixes else ''
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    try:
        # Ours check what is loaded, and what may be missing, by a hook of their own.
        missing, _ = backbone.load_state_dict(weights, strict=False)
    except WeightsError:
        raise
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise WeightsError(f'does not fit the backbone: {lines[-1].strip()}') from error
    missing = [name for name in missing if 'num_batches_tracked' not in name]
    if missing and not ours:
        raise WeightsError(
            f'lacks {len(missing)} tensors of the backbone, a '
            f'{type(backbone).__name__}: {", ".join(missing[:3])}'
        )
