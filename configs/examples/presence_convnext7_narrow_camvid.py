# The control with 7 x 7 kernels learns which classes a crop shows.
_base_ = './_base_/presence_narrow_camvid.py'

model = dict(
    backbone=dict(
        type='pelk_mm.SLaK',
        arch=dict(
            **_base_.narrow,
            kernel_sizes=[7, 7, 7, 7],
            decomposed=False,
            small_kernel=None,
        ),
        norm_cfg=None,
        small_kernel_merged=True,
        layer_scale_init_value=1.0,
        init_cfg=_base_.narrow_init,
    )
)
