# SLaK-B with Cascade Mask R-CNN on COCO, 3x: 52.5 box and 45.5 mask AP in the paper.
_base_ = './cascade_mask_rcnn_slak_t_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.7),
    neck=dict(in_channels=[166, 332, 665, 1331]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))
default_hooks = dict(sparsity=dict(update_interval=100, prune_rate=0.3))
