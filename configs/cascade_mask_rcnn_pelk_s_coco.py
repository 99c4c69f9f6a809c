# PeLK-S with Cascade Mask R-CNN on COCO, 3x: 52.2 box and 45.3 mask AP in the paper.
_base_ = './cascade_mask_rcnn_pelk_t_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.6))
default_hooks = dict(sparsity=dict(update_interval=100, prune_rate=0.3))
