"""What is measured: the model of a config, or the same with another backbone."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from pelk_mm.checkpoints.files import CheckpointError, read_checkpoint
from pelk_mm.checkpoints.weights import find_weights
from pelk_mm.config_types import find_framework, read_config

from .counting import input_channels
from .from_config import build_on_meta

#: What of a model is run: the backbone, with the neck where there is one, or all of it.
PARTS = ('backbone', 'whole')


class UnavailableError(ValueError):
    """A form that cannot be measured here; the message says why."""


class Competitor(NamedTuple):
    """A backbone that others are compared with.

    Attributes:
        packages: Those that have it, the preferred one first.
        config: Its config, without the scope.
        channels: Widths of its stages.
        millions: Its parameters, in millions.
    """

    packages: tuple[str, ...]
    config: dict[str, Any]
    channels: tuple[int, ...]
    millions: float


def _swin(width: int, depth: int, heads: int, millions: float) -> Competitor:
    """A Swin Transformer (Liu et al., ICCV 2021, section 3.3)."""
    config = dict(
        type='SwinTransformer',
        embed_dims=width,
        depths=(2, 2, depth, 2),
        num_heads=tuple(heads * 2**i for i in range(4)),
        window_size=7,
    )
    channels = tuple(width * 2**i for i in range(4))
    return Competitor(('mmseg', 'mmdet'), config, channels, millions)


def _convnext(arch: str, width: int, millions: float) -> Competitor:
    """A ConvNeXt (Liu et al., CVPR 2022, section 3) that returns maps, not vectors."""
    config = dict(type='ConvNeXt', arch=arch, gap_before_final_norm=False)
    channels = tuple(width * 2**i for i in range(4))
    return Competitor(('mmpretrain',), config, channels, millions)


#: By name, the backbones that our models' papers compare them with.
COMPETITORS = {
    'swin_tiny': _swin(96, 6, 3, 27.5),
    'swin_small': _swin(96, 18, 3, 48.8),
    'swin_base': _swin(128, 18, 4, 86.7),
    'swin_large': _swin(192, 18, 6, 195.0),
    'convnext_tiny': _convnext('tiny', 96, 27.8),
    'convnext_small': _convnext('small', 96, 49.5),
    'convnext_base': _convnext('base', 128, 87.6),
    'convnext_large': _convnext('large', 192, 196.2),
}


def of_like_size(parameters: int) -> list[str]:
    """Of each family of `COMPETITORS` the one whose size is nearest, by ratio."""
    nearest = {}
    for family in ('swin', 'convnext'):
        names = [name for name in COMPETITORS if name.startswith(f'{family}_')]
        nearest[family] = min(
            names,
            key=lambda name: abs(log(COMPETITORS[name].millions * 1e6 / parameters)),
        )
    return list(nearest.values())


@dataclass(frozen=True)
class Subject:
    """A model to measure, in words from which another process can build it.

    Attributes:
        name: What the table calls it.
        config: The config file.
        part: One of `PARTS`.
        options: Values that replace or extend those of the config.
        checkpoint: File of the weights; None for random ones.
        competitor: Key of `COMPETITORS` that takes the place of the config's backbone.
        channels: Channels of the images.
    """

    name: str
    config: str
    part: str = 'whole'
    options: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    competitor: str | None = None
    channels: int = 3

    def read(self) -> Config:
        """Read the config, with the competitor's backbone in its place.

        Raises:
            ConfigError: If it cannot be read.
            ValueError: If it has no model with a backbone.
            UnavailableError: If no package that has the competitor is installed.
        """
        cfg = read_config(self.config, self.options)
        if not isinstance(cfg.get('model'), dict) or 'backbone' not in cfg.model:
            raise ValueError(f'config {self.config} has no model with a backbone')
        if self.competitor is not None:
            _replace_backbone(cfg, self.competitor, self.channels)
        return cfg

    def build(self) -> nn.Module:
        """Build what is measured, in evaluation mode: images in, tensors out.

        Random weights are the same in every process. Their BatchNorms and layer scales
        are drawn too, as at their initial values they would hide errors of folding.

        Raises:
            CheckpointError: If the checkpoint cannot be read or does not fit.
            UnavailableError: If the competitor's package is not installed.
        """
        cfg = self.read()
        torch.manual_seed(0)
        model = _build(cfg, self.part)
        if self.checkpoint is None:
            _draw_norms(model)
        else:
            load_weights(model, self.checkpoint)
        return wrap(revert_sync_batchnorm(model), self.predicts(cfg)).eval()

    def predicts(self, cfg: Config) -> bool:
        """Whether the whole of a detector is run, whose heads need its own predict."""
        return self.part == 'whole' and find_framework(cfg) == 'mmdet'


def plan_subjects(
    config: str,
    against: Sequence[str] | None = None,
    *,
    part: str | None = None,
    options: Mapping[str, Any] | None = None,
    checkpoint: str | None = None,
) -> list[Subject]:
    """Find out what is to be measured, and that it can be built and loaded.

    Args:
        config: Config file of the model.
        against: What it is compared with: keys of `COMPETITORS`, and config files; None
            for those of like size.
        part: One of `PARTS`; None for the backbone of a detector and the whole of all
            others.
        options: Values that replace or extend those of ``config``.
        checkpoint: File of its weights.

    Returns:
        The subjects, that of ``config`` first.

    Raises:
        ConfigError: If a config cannot be read.
        CheckpointError: If the checkpoint cannot be read or does not fit.
        ValueError: If a model cannot be built, or takes images of other channels.
    """
    first = Subject(Path(config).stem, config, options=options or {})
    cfg = first.read()
    model = _on_meta(cfg)
    part = part or ('backbone' if find_framework(cfg) == 'mmdet' else 'whole')
    channels = input_channels(model)
    first = replace(first, part=part, checkpoint=checkpoint, channels=channels)
    backbone = model.get_submodule('backbone')
    if checkpoint is not None:
        neck = getattr(model, 'neck', None)
        load_weights(
            model if part == 'whole' else Features(backbone, neck), Path(checkpoint)
        )
    if against is None:
        against = of_like_size(sum(each.numel() for each in backbone.parameters()))
    subjects = [first]
    for name in against:
        if name in COMPETITORS:
            other = replace(first, name=name, checkpoint=None, competitor=name)
        else:
            other = Subject(Path(name).stem, name, part, channels=channels)
            found = input_channels(_on_meta(other.read()))
            if found != channels:
                raise ValueError(
                    f'{name} takes images of {found} channels, and {config} of '
                    f'{channels}: they cannot be compared'
                )
        subjects.append(other)
    return subjects


def _on_meta(cfg: Config) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about losses, which are not used here
        return build_on_meta(cfg)


def _build(cfg: Config, part: str) -> nn.Module:
    """Build the model of a config, or its backbone and neck alone."""
    scope = find_framework(cfg) or cfg.get('default_scope') or 'mmengine'
    with warnings.catch_warnings(), DefaultScope.overwrite_default_scope(scope):
        warnings.simplefilter('ignore')
        if part == 'whole':
            return MODELS.build(cfg.model)
        parts = (cfg.model.get(name) for name in ('backbone', 'neck'))
        return Features(*(MODELS.build(each) for each in parts if each))


def _replace_backbone(cfg: Config, name: str, image_channels: int) -> None:
    """Put a competitor where a config has its backbone, and fit what reads its maps."""
    competitor = COMPETITORS[name]
    packages = competitor.packages
    preferred = (find_framework(cfg), *packages)
    package = next((p for p in preferred if p in packages and find_spec(p)), None)
    if package is None:
        raise UnavailableError(
            f'{" and ".join(packages)} {"is" if len(packages) == 1 else "are"} not '
            f'installed, which ha{"s" if len(packages) == 1 else "ve"} '
            f'{competitor.config["type"]}'
        )
    indices = tuple(cfg.model.backbone.get('out_indices') or range(4))
    cfg.model.backbone = dict(
        competitor.config,
        type=f'{package}.{competitor.config["type"]}',
        in_channels=image_channels,
        out_indices=indices,
    )
    channels = [competitor.channels[i] for i in indices]
    readers = ('neck',) if cfg.model.get('neck') else ('decode_head', 'auxiliary_head')
    for reader in readers:
        parts = cfg.model.get(reader) or []
        parts = parts if isinstance(parts, list) else [parts]
        # Of several necks the first one reads the backbone's maps.
        for part in parts[:1] if reader == 'neck' else parts:
            _fit(part, channels)


def _fit(part: Any, channels: Sequence[int]) -> None:
    """Set the channels that a neck or head reads."""
    if isinstance(part.get('in_channels'), (list, tuple)):
        indices = part.get('in_index') or range(len(channels))
        part.in_channels = [channels[i] for i in indices]
    elif 'in_channels' in part:
        part.in_channels = channels[part.get('in_index', -1)]


@torch.no_grad()
def _draw_norms(model: nn.Module) -> None:
    """Draw what training would have moved away from one and zero."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.1, 0.1),
            ):
                if tensor is not None:
                    tensor.uniform_(low, high)
    for name, parameter in model.named_parameters():
        if name.rpartition('.')[2] == 'gamma':
            parameter.uniform_(0.1, 1.0)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load the weights of a checkpoint.

    Args:
        model: What `_build` returns: a whole model, or `Features`, which take their
            part of a whole model's file, or a file of the backbone alone.
        path: The checkpoint.

    Raises:
        CheckpointError: If it cannot be read, or does not fit.
    """
    _, weights = find_weights(read_checkpoint(path), ('state_dict',))
    if isinstance(model, Features):
        own = tuple(f'{name}.' for name, _ in model.named_children())
        found = {k: v for k, v in weights.items() if str(k).startswith(own)}
        if not found and not hasattr(model, 'neck'):
            found = {f'backbone.{name}': v for name, v in weights.items()}
        weights = found
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the tensors of a meta model stay empty
            model.load_state_dict(dict(weights))
    except CheckpointError as error:  # of the backbone's own, without the name
        raise CheckpointError(f'{path}: {error}') from error
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines()] or ['']
        raise CheckpointError(
            f'{path} does not fit the config: {lines[min(1, len(lines) - 1)][:200]}; '
            'give the config that it was trained with'
        ) from error


# --------------------------------------------------------------- images in, tensors out


class Features(nn.Module):
    """A backbone and perhaps a neck; returns the feature maps."""

    def __init__(self, backbone: nn.Module, neck: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        if neck is not None:
            self.neck = neck

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of images of shape (N, C, H, W)."""
        maps = self.backbone(images)
        return tuple(self.neck(maps) if hasattr(self, 'neck') else maps)


class Whole(nn.Module):
    """A whole model by its mode 'tensor': a segmenter's logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    @property
    def backbone(self) -> nn.Module:
        """The model's backbone."""
        return self.model.backbone

    def forward(self, images: Tensor) -> Any:
        """Compute what images of shape (N, C, H, W), normalised, give."""
        if isinstance(self.model, BaseModel):
            return self.model(images, mode='tensor')
        return self.model(images)


class Predictions(Whole):
    """A whole detector by its method ``predict``."""

    def forward(self, images: Tensor) -> Tensor:
        """Find objects on images of shape (N, C, H, W), normalised.

        Returns:
            The scores of those on the first image, in descending order: (1, objects).
        """
        size = tuple(images.shape[-2:])
        shapes = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
        known = dict.fromkeys(shapes, size) | dict(scale_factor=(1.0, 1.0))
        samples = [BaseDataElement(metainfo=known) for _ in images]
        found = self.model.predict(images, samples, rescale=False)
        return found[0].pred_instances.scores[None]


def wrap(model: nn.Module, predicts: bool = False) -> nn.Module:
    """Have a model take images alone."""
    if isinstance(model, Features):
        return model
    return Predictions(model) if predicts else Whole(model)
