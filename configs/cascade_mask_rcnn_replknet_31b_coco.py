# RepLKNet-31B of ImageNet-1K with Cascade Mask R-CNN on COCO, 3x: 52.2 box and 45.2
# mask AP in the paper. Its released lr of 4e-4 is for a larger batch than 16.
_base_ = [
    './_base_/models/cascade_mask_rcnn.py',
    './_base_/datasets/coco_instance.py',
    './_base_/schedules/adamw_3x.py',
    './_base_/mmdet_runtime.py',
]

model = dict(
    backbone=dict(
        type='RepLKNet',
        arch='31B',
        drop_path_rate=0.6,
        norm_cfg=dict(type='SyncBN'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
default_hooks = dict(**_base_.framework_hooks)
