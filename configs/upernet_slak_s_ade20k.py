# SLaK-S with UperNet on ADE20K: 49.4 mIoU single-scale in the paper.
_base_ = './upernet_slak_t_ade20k.py'

model = dict(backbone=dict(arch='small'))
default_hooks = dict(sparsity=dict(update_interval=100, prune_rate=0.3))
