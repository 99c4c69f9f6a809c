# SLaK-T with UperNet on ADE20K: 47.6 mIoU single-scale in the paper.
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/adamw_160k.py',
    './_base_/mmseg_runtime.py',
    './_base_/sparsity.py',
]

model = dict(
    backbone=dict(
        type='SLaK',
        arch='tiny',
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        norm_cfg=dict(type='SyncBN'),
    ),
    decode_head=dict(in_channels=[124, 249, 499, 998]),
    auxiliary_head=dict(in_channels=499),
)
optim_wrapper = dict(
    constructor='LargeKernelLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise'),
)
default_hooks = dict(**_base_.framework_hooks, sparsity=_base_.sparsity)
