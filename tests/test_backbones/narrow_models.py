"""Narrow backbones without memory, their weights, and a model around them."""

import torch
from mmengine.registry import MODELS
from torch import nn

import pelk_mm  # noqa: F401

SIZES = dict(channels=[8, 16], depths=[1, 2], kernel_sizes=[11, 9])
TYPES = {
    'pelk': dict(type='PeLK', arch=dict(SIZES, central_radius=2)),
    'slak': dict(type='SLaK', arch=SIZES),
    'slak-dense': dict(type='SLaK', arch=dict(SIZES, decomposed=False)),
    'replknet': dict(type='RepLKNet', arch=SIZES),
    'replknet-xl': dict(
        type='RepLKNet',
        arch=dict(SIZES, small_kernel=None, dw_ratio=1.5),
        norm_intermediate_features=True,
    ),
}
KINDS = list(TYPES)


def build(kind, arch=None, **kwargs):
    """A narrow backbone, shapes without memory."""
    cfg = {'out_indices': (0, 1), **TYPES[kind], **kwargs}
    with torch.device('meta'):
        return MODELS.build({**cfg, 'arch': {**cfg['arch'], **(arch or {})}})


_states = {}


def weights(kind, prefix='', **kwargs):
    """A backbone's state dict."""
    key = repr((kind, kwargs))
    if key not in _states:
        _states[key] = build(kind, **kwargs).state_dict()
    return {f'{prefix}{name}': value for name, value in _states[key].items()}


def whole(backbone):
    return nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(2, 2)))


HEAD = nn.Linear(2, 2).state_dict(prefix='head.')
