# PeLK-B with UperNet on ADE20K: 50.4 mIoU single-scale in the paper (table 3).
_base_ = './upernet_pelk_t_ade20k.py'

model = dict(
    backbone=dict(arch='base'),
    decode_head=dict(in_channels=[166, 332, 665, 1331]),
    auxiliary_head=dict(in_channels=665),
)
default_hooks = dict(sparsity=dict(update_interval=100, prune_rate=0.3))
