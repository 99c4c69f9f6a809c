# RepLKNet-31B on ImageNet-1K in 120 epochs with drop path 0.3, the paper's setting for
# its own comparisons (appendix A).
_base_ = './replknet_31b_300e_in1k.py'

__import__('pelk_mm').engine.set_max_epochs(_base_, 120)
model = dict(backbone=dict(drop_path_rate=0.3))
