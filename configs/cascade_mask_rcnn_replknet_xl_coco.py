# RepLKNet-XL of MegData73M with Cascade Mask R-CNN on COCO, 3x: 55.5 box and 48.0
# mask AP in the paper. Its pre-training had a mean and std of its own.
_base_ = './cascade_mask_rcnn_replknet_31b_coco.py'

model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    backbone=dict(arch='XL', norm_intermediate_features=True, with_cp=True),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
