# RepLKNet-31B on ImageNet-1K in 120 epochs; a shorter training needs less drop path,
# how much less is our choice.
_base_ = './replknet_31b_300e_in1k.py'

__import__('pelk_mm').engine.set_max_epochs(_base_, 120)
model = dict(backbone=dict(drop_path_rate=0.3))
