# The control: ConvNeXt's block, a dense 7 x 7 kernel with a bias, in the same pyramid.
# It is SLaK's without stripes, small kernel and norm, in the form that has a bias.
_base_ = './_base_/upernet_narrow_camvid.py'

model = dict(
    backbone=dict(
        type='SLaK',
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
