# RepLKNet-31L of ImageNet-22K with Cascade Mask R-CNN on COCO, 3x: 53.9 box and 46.5
# mask AP in the paper.
_base_ = './cascade_mask_rcnn_replknet_31b_coco.py'

model = dict(
    backbone=dict(arch='31L'),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
