# RepLKNet-31B of ImageNet-1K with FCOS on COCO, 2x: 47.0 box AP in the paper.
_base_ = [
    './_base_/models/fcos.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/adamw_2x.py',
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
