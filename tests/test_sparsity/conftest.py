"""A small model, its data and its runner."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from pelk_mm.backbones import PeLK


@pytest.fixture(autouse=True, scope='module')
def _one_thread(one_thread):
    """For all tests of this folder."""


class Images(Dataset):
    """Sixteen fixed images, augmented by all three generators."""

    def __init__(self, size=32):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(16, 3, size, size, generator=generator)
        self.labels = torch.randint(3, (16,), generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index] + 0.1 * torch.randn(3, 1, 1)
        image = image * (1 + 0.1 * np.random.rand()) + 0.1 * random.random()
        return dict(inputs=image, label=self.labels[index])


class Classifier(BaseModel):
    """A narrow PeLK with BatchNorm, dropout and drop path."""

    def __init__(self, **backbone):
        super().__init__()
        arch = dict(
            channels=[8, 12, 16, 20],
            depths=[1, 1, 2, 1],
            kernel_sizes=[13, 13, 9, 5],
            central_radius=1,
        )
        # Without zeros at initialisation every layer has a gradient from the start.
        self.backbone = PeLK(
            arch,
            out_indices=[3],
            drop_path_rate=0.2,
            layer_scale_init_value=1.0,
            norm_cfg=dict(type='BN'),
            **backbone,
        )
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(20, 3)

    def forward(self, inputs, label=None, mode='tensor'):
        inputs = torch.stack(inputs) if isinstance(inputs, list) else inputs
        features = self.backbone(inputs)[-1].mean((2, 3))
        scores = self.head(self.dropout(features))
        if mode == 'loss':
            # As mmseg's: ignored labels add 0 to a mean over all.
            label = torch.stack(label) if isinstance(label, list) else label
            losses = F.cross_entropy(scores, label, reduction='none')
            return dict(loss_cls=losses.mean())
        return scores


@pytest.fixture
def classifier():
    """Makes the model."""
    return Classifier


@pytest.fixture
def images():
    """Makes the data."""
    return Images


@pytest.fixture
def make_runner(tmp_path):
    """Makes a runner that trains the model for a few iterations."""
    count = iter(range(1000))

    def make(
        *hooks,
        iters=12,
        optimizer=None,
        save=1000,
        model=None,
        batch_size=4,
        optim_wrapper=None,
        **kwargs,
    ):
        torch.manual_seed(0)
        return Runner(
            model=model or Classifier(),
            work_dir=str(tmp_path),
            train_dataloader=dict(
                dataset=Images(),
                batch_size=batch_size,
                num_workers=0,
                sampler=dict(type='InfiniteSampler', shuffle=True),
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters),
            optim_wrapper=dict(
                optimizer=optimizer or dict(type='AdamW', lr=0.01, weight_decay=0.05),
                **(optim_wrapper or {}),
            ),
            param_scheduler=dict(type='PolyLR', by_epoch=False, end=iters),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=5),
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=save),
            ),
            custom_hooks=list(hooks),
            log_processor=dict(by_epoch=False),
            randomness=dict(seed=3),
            experiment_name=f'{tmp_path.name}_{next(count)}',
            default_scope='mmengine',
            **kwargs,
        )

    return make
