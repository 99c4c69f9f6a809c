"""Narrow backbones of every kind of mixer."""

SIZES = dict(channels=[8, 16], depths=[1, 2], kernel_sizes=[11, 9])
COMMON = dict(out_indices=(0, 1))
CONFIGS = {
    'pelk': dict(type='PeLK', arch=dict(SIZES, central_radius=2)),
    'pelk-small': dict(
        type='PeLK',
        arch=dict(SIZES, central_radius=2, small_kernel=3),
        norm_cfg=dict(type='BN'),
    ),
    'slak': dict(type='SLaK', arch=SIZES),
    'slak-dense': dict(type='SLaK', arch=dict(SIZES, decomposed=False)),
    'replknet': dict(type='RepLKNet', arch=SIZES),
}
PARTS = {
    'pelk': ['large'],
    'pelk-small': ['large', 'small'],
    'slak': ['vertical', 'horizontal', 'small'],
    'slak-dense': ['large', 'small'],
    'replknet': ['large', 'small'],
}
