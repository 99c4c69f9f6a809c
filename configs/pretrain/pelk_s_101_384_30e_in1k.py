# PeLK-S-101 fine-tuned on ImageNet-1K at 384 x 384, from the classifier that
# pelk_s_101_300e_in1k trains; drop path is the pre-training's.
_base_ = './pelk_t_101_384_30e_in1k.py'

model = dict(backbone=dict(arch='small-101', drop_path_rate=0.4))
