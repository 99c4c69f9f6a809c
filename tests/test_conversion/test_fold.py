"""BatchNorms of mm's ConvModules, folded into their convolutions."""

import torch
from mmcv.cnn import ConvModule
from torch import nn

from pelk_mm.conversion.fold import fold_conv_modules


def make_module(**settings):
    norm_cfg = settings.pop('norm_cfg', dict(type='BN'))
    module = ConvModule(4, 8, 3, padding=1, norm_cfg=norm_cfg, **settings)
    return module.eval()


def test_what_is_folded():
    x = torch.randn(2, 4, 9, 7)
    for settings, folds in (
        (dict(), 1),
        (dict(bias=True), 1),
        (dict(order=('act', 'conv', 'norm')), 1),
        (dict(groups=2), 1),
        (dict(norm_cfg=dict(type='BN', affine=False)), 1),
        (dict(order=('conv', 'act', 'norm')), 0),
        (dict(norm_cfg=dict(type='GN', num_groups=2)), 0),
        (dict(norm_cfg=dict(type='BN', track_running_stats=False)), 0),
        (dict(with_spectral_norm=True), 0),
        (dict(conv_cfg=dict(type='ConvAWS')), 0),  # standardises its weight
    ):
        torch.manual_seed(0)
        module = make_module(**settings)
        if getattr(module.norm, 'running_mean', None) is not None:
            module.norm.running_mean.normal_()
            module.norm.running_var.uniform_(0.5, 2)
        with torch.no_grad():
            expected = module(x)
            assert fold_conv_modules(module) == folds, settings
            torch.testing.assert_close(module(x), expected)
        assert isinstance(module.norm, nn.Identity) is bool(folds)
        assert fold_conv_modules(module) == 0
    training = make_module().train()
    assert fold_conv_modules(training) == 0


def test_a_convolution_that_levels_share():
    """As in RTMDet's heads: one convolution, and a norm for each level."""
    levels = nn.ModuleList(make_module() for _ in range(3))
    for level in levels:
        level.conv = levels[0].conv
        level.norm.running_mean.normal_()
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        expected = [level(x) for level in levels]
        assert fold_conv_modules(levels) == 3
        for level, right in zip(levels, expected, strict=True):
            torch.testing.assert_close(level(x), right)


def test_norms_that_are_folded_at_every_call():
    module = make_module(efficient_conv_bn_eval=True)
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        expected = module(x)
        assert fold_conv_modules(module) == 1
        torch.testing.assert_close(module(x), expected)
