# RepLKNet-31B of ImageNet-1K with UperNet on Cityscapes, 80k iterations: 83.1 mIoU
# single-scale in the paper. Drop path, rate and batch are those for ADE20K.
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/cityscapes.py',
    './_base_/schedules/adamw_80k.py',
    './_base_/mmseg_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(769, 769)),
    backbone=dict(
        type='RepLKNet',
        arch='31B',
        drop_path_rate=0.5,
        norm_cfg=dict(type='SyncBN'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024], num_classes=19),
    auxiliary_head=dict(in_channels=512, num_classes=19),
    test_cfg=dict(crop_size=(769, 769), stride=(513, 513)),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(norm_decay_mult=0.0))
