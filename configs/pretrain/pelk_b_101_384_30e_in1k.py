# PeLK-B-101 fine-tuned on ImageNet-1K at 384 x 384: 85.8 top-1 in the paper.
# It starts from the classifier that pelk_b_101_300e_in1k trains; drop path is
# ConvNeXt-B's.
_base_ = './pelk_t_101_384_30e_in1k.py'

model = dict(
    backbone=dict(arch='base-101', drop_path_rate=0.8),
    neck=dict(channels=1331),
    head=dict(in_channels=1331),
)
