# RepLKNet-31B of ImageNet-1K with UperNet on ADE20K: 49.9 mIoU single-scale in the
# paper.
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/adamw_160k.py',
    './_base_/mmseg_runtime.py',
]

model = dict(
    backbone=dict(
        type='RepLKNet',
        arch='31B',
        drop_path_rate=0.5,
        norm_cfg=dict(type='SyncBN'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(norm_decay_mult=0.0))
default_hooks = dict(**_base_.framework_hooks)
