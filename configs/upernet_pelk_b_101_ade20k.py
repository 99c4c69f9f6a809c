# PeLK-B-101 with UperNet on ADE20K: 50.6 mIoU single-scale in the paper (table 3).
_base_ = './upernet_pelk_b_ade20k.py'

model = dict(backbone=dict(arch='base-101'))
