# PeLK-B fine-tuned on ImageNet-1K at 384 x 384: 85.6 top-1 in the paper. It
# starts from the classifier that pelk_b_300e_in1k trains.
_base_ = './pelk_b_101_384_30e_in1k.py'

model = dict(backbone=dict(arch='base'))
