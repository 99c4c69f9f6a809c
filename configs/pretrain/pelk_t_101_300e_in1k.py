# PeLK-T-101 on ImageNet-1K at 224 x 224, to be fine-tuned at 384 x 384, where the paper
# reports it. What that fine-tuning starts from the paper does not say.
_base_ = './pelk_t_300e_in1k.py'

model = dict(backbone=dict(arch='tiny-101'))
