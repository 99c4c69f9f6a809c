# PeLK-T with Cascade Mask R-CNN on COCO, 3x: 51.4 box and 44.6 mask AP in the paper.
_base_ = [
    './_base_/models/cascade_mask_rcnn.py',
    './_base_/datasets/coco_instance.py',
    './_base_/schedules/adamw_3x.py',
    './_base_/mmdet_runtime.py',
    './_base_/sparsity.py',
]

model = dict(
    backbone=dict(
        type='PeLK', arch='tiny', drop_path_rate=0.4, layer_scale_init_value=1.0
    ),
    neck=dict(in_channels=[124, 249, 499, 998]),
)
optim_wrapper = dict(
    constructor='LargeKernelLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(decay_rate=0.7, decay_type='layer_wise'),
)
default_hooks = dict(**_base_.framework_hooks, sparsity=_base_.sparsity)
