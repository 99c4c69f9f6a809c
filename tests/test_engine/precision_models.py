"""Small models of the three families, their data and their optimizer wrapper."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn
from torch.utils.data import Dataset

from pelk_mm.backbones import PeLK, RepLKNet, SLaK

CHANNELS = [8, 12]
ARCH = dict(channels=CHANNELS, depths=[1, 1], kernel_sizes=[13, 9])
BACKBONES = {
    'PeLK': (PeLK, dict(central_radius=1)),
    'SLaK': (SLaK, {}),
    'RepLKNet': (RepLKNet, {}),
}


class Loss(nn.Module):
    """Cross entropy that notes what it is given, and whether autocast is on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, scores, labels):
        self.seen.append((scores.dtype, torch.is_autocast_enabled('cpu')))
        return F.cross_entropy(scores, labels)


class Head(nn.Module):
    """A convolution with a loss of its own, as mmseg's and mmdet's heads have it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS[-1], 3, 1)
        self.loss_cls = Loss()
        self.factor = 1.0
        self.seen = []

    def forward(self, features):
        return self.conv(features).mean((2, 3))

    def loss_by_feat(self, predictions, labels):
        (scores,) = predictions['scores']
        self.seen.append((scores.dtype, torch.is_autocast_enabled('cpu')))
        return self.loss_cls(scores * self.factor, labels)


class Model(BaseModel):
    """A narrow backbone, a head, and an auxiliary loss outside any head."""

    def __init__(self, family='PeLK', **kwargs):
        super().__init__()
        torch.manual_seed(0)
        kind, arch = BACKBONES[family]
        self.backbone = kind({**ARCH, **arch}, out_indices=[0, 1], **kwargs)
        self.auxiliary = nn.Linear(CHANNELS[0], 3)
        self.loss_aux = Loss()
        self.head = Head()
        self.seen = []

    def forward(self, inputs, label=None, mode='tensor'):
        low, high = self.backbone(torch.stack(list(inputs)))
        scores = self.head(high)
        if mode != 'loss':
            return scores
        auxiliary = self.auxiliary(low.mean((2, 3)))
        self.seen.append((scores.dtype, torch.is_autocast_enabled('cpu')))
        label = torch.stack(list(label))
        return dict(
            loss_aux=self.loss_aux(auxiliary, label),
            loss_cls=self.head.loss_by_feat(dict(scores=[scores]), label),
        )


class Images(Dataset):
    """Sixteen images of noise, drawn anew every time."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        image = torch.randn(3, 32, 32) + index / 8
        return dict(inputs=image, label=torch.tensor(index % 3))


def batch(count=4):
    generator = torch.Generator().manual_seed(1)
    return dict(
        inputs=list(torch.randn(count, 3, 32, 32, generator=generator)),
        label=[torch.tensor(i % 3) for i in range(count)],
    )


def wrap(model, kind='AmpOptimWrapper', lr=0.01, **kwargs):
    """Builds an optimizer wrapper as mmengine does for ``--amp``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    return OPTIM_WRAPPERS.build(dict(type=kind, optimizer=optimizer, **kwargs))


def gradients(model, wrapper, data):
    """Gradients of one forward and backward pass, without a step."""
    with wrapper.optim_context(model):
        loss = model.parse_losses(model(**data, mode='loss'))[0]
    wrapper.backward(loss)
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def tensors(entry, name=''):
    """All tensors in nested dicts and lists, by path."""
    if isinstance(entry, torch.Tensor):
        yield name, entry
    elif isinstance(entry, (dict, list, tuple)):
        items = entry.items() if isinstance(entry, dict) else enumerate(entry)
        for key, value in items:
            yield from tensors(value, f'{name}.{key}')
