# SLaK-B with UperNet on ADE20K: 50.2 mIoU single-scale in the paper.
_base_ = './upernet_slak_t_ade20k.py'

model = dict(
    backbone=dict(arch='base'),
    decode_head=dict(in_channels=[166, 332, 665, 1331]),
    auxiliary_head=dict(in_channels=665),
)
default_hooks = dict(sparsity=dict(update_interval=100, prune_rate=0.3))
