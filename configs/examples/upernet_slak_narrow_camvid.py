# A narrow SLaK with the paper's kernels on CamVid.
_base_ = './_base_/upernet_narrow_camvid.py'

model = dict(
    backbone=dict(
        type='SLaK',
        arch=dict(**_base_.narrow, kernel_sizes=[51, 49, 47, 13]),
        layer_scale_init_value=1.0,
        init_cfg=_base_.narrow_init,
    )
)
