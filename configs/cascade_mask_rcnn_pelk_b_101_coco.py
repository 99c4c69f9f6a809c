# PeLK-B-101 with Cascade Mask R-CNN on COCO, 3x: 53.1 box and 46.1 mask AP in
# the paper.
_base_ = './cascade_mask_rcnn_pelk_b_coco.py'

model = dict(backbone=dict(arch='base-101'))
