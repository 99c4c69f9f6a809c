# PeLK-T on ImageNet-1K: 82.6 top-1 in the paper. The recipe is SLaK's, drop path
# included.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_300e.py',
    '../_base_/mmpretrain_runtime.py',
    '../_base_/sparsity.py',
]

model = dict(
    backbone=dict(
        type='pelk_mm.PeLK', arch='tiny', drop_path_rate=0.1, output_norms=False
    ),
    neck=dict(channels=998),
    head=dict(in_channels=998),
)
default_hooks = dict(**_base_.framework_hooks, sparsity=_base_.sparsity)
