# PeLK-T on ImageNet-1K: 82.6 top-1 in the paper. The recipe is SLaK's, drop path
# included.
_base_ = './slak_t_300e_in1k.py'

model = dict(backbone=dict(type='pelk_mm.PeLK'))
