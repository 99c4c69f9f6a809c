# RepLKNet-31B of ImageNet-1K with UperNet on Cityscapes, 80k iterations: 83.1 mIoU
# single-scale in the paper. Drop path, rate and batch are those for ADE20K.
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/cityscapes.py',
    './_base_/schedules/adamw_80k.py',
    './_base_/mmseg_runtime.py',
]

edit = __import__('pelk_mm').engine
edit.set_num_classes(_base_, 19)
edit.set_crop_size(_base_, _base_.crop_size)

model = dict(
    backbone=dict(
        type='RepLKNet',
        arch='31B',
        drop_path_rate=0.5,
        norm_cfg=dict(type='SyncBN'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
    test_cfg=dict(stride=(513, 513)),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(norm_decay_mult=0.0))
default_hooks = dict(**_base_.framework_hooks)
