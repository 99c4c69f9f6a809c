# PeLK-T-101 with UperNet on ADE20K: no figure in the paper, which has B alone.
_base_ = './upernet_pelk_t_ade20k.py'

model = dict(backbone=dict(arch='tiny-101'))
