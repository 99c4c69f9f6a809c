# SLaK-S with Cascade Mask R-CNN on COCO, 3x: no figure in the paper.
_base_ = './cascade_mask_rcnn_slak_t_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.6))
default_hooks = dict(sparsity=dict(update_interval=100, prune_rate=0.3))
