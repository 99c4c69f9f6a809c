# PeLK-S-101 with Cascade Mask R-CNN on COCO, 3x: no figure in
# the paper, which has B alone.
_base_ = './cascade_mask_rcnn_pelk_s_coco.py'

model = dict(backbone=dict(arch='small-101'))
