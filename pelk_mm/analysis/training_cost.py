"""What a training costs, from its config: arithmetic, not a measurement."""

from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from pelk_mm.config_types import find_framework, type_name

from .complexity import complexity, total
from .from_config import build_on_meta, image_shape, train_shape

#: Images of a training set that an epoch goes through.
EPOCH = {'ImageNet': 1_281_167, 'CocoDataset': 117_266}

#: Of a forward pass, what an iteration does: that, and the gradients to inputs and
#: to weights, each as much.
PASSES = 3

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class TrainingCost:
    """Work of a training.

    Attributes:
        shape: Height and width of its images.
        images: Images that it goes through.
        multiply_adds: Of one forward pass, with dense K x K kernels, zeros included, as
            GPUs compute it.
    """

    shape: tuple[int, int]
    images: int
    multiply_adds: float

    @property
    def flops(self) -> float:
        """Floating-point operations of the training, two for each multiply-add."""
        return 2 * PASSES * self.multiply_adds * self.images

    def gpu_hours(self, peak: float, utilisation: float) -> float:
        """Hours on one GPU.

        Args:
            peak: Its floating-point operations per second.
            utilisation: The share of them that the training reaches.
        """
        return self.flops / (peak * utilisation) / SECONDS_PER_HOUR


def training_cost(cfg: Config) -> TrainingCost:
    """Work of the training of a config.

    Raises:
        ValueError: If the config does not tell how many images it trains on, or its
            model cannot be built.
    """
    framework = find_framework(cfg)
    shape = image_shape(cfg)
    if framework != 'mmdet':  # whose crops are one branch of several
        shape = train_shape(cfg) or shape
    size = total(complexity(_model(cfg, framework), shape))
    return TrainingCost(shape, training_images(cfg), size.paper)


def _model(cfg: Config, framework: str | None) -> nn.Module:
    if framework != 'mmpretrain':
        return build_on_meta(cfg)
    # A classifier's head is one product: without it mmpretrain need not be there.
    model: Any = nn.Module()
    with torch.device('meta'):
        model.backbone = MODELS.build(cfg.model.backbone)
    return model


def training_images(cfg: Config) -> int:
    """Images that a training goes through, with the batch that its rates are for.

    Raises:
        ValueError: If it counts epochs of a data set whose size is not known here.
    """
    if 'max_iters' in cfg.train_cfg:
        return cfg.train_cfg.max_iters * cfg.auto_scale_lr.base_batch_size
    kind = type_name(cfg.train_dataloader.dataset.type)
    if kind not in EPOCH:
        raise ValueError(
            f'{cfg.filename} trains on {kind}, whose images are not counted here; '
            f'give a config on {" or ".join(EPOCH)}'
        )
    return cfg.train_cfg.max_epochs * EPOCH[kind]
