# RepLKNet-XL of MegData73M with UperNet on ADE20K in crops of 640: 55.2 mIoU
# single-scale in the paper. Its pre-training had a mean and std of its own.
_base_ = './upernet_replknet_31b_22k_ade20k.py'

model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    backbone=dict(arch='XL', norm_intermediate_features=True, with_cp=True),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
