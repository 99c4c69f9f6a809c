# The narrow PeLK learns which classes a crop shows.
_base_ = './_base_/presence_narrow_camvid.py'

model = dict(
    backbone=dict(
        type='pelk_mm.PeLK',
        arch=dict(**_base_.narrow, kernel_sizes=[51, 49, 47, 13], central_radius=2),
        cell_means=True,
        layer_scale_init_value=1.0,
        init_cfg=_base_.narrow_init,
    )
)
