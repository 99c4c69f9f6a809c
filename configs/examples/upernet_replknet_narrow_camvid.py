# A narrow RepLKNet with the paper's kernels on CamVid.
_base_ = './_base_/upernet_narrow_camvid.py'

model = dict(
    backbone=dict(
        type='RepLKNet', arch=dict(**_base_.narrow, kernel_sizes=[31, 29, 27, 13])
    )
)
