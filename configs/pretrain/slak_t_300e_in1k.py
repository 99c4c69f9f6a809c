# SLaK-T on ImageNet-1K: 82.5 top-1 in the paper. Drop path and updates of the
# masks are those of the released command.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_300e.py',
    '../_base_/mmpretrain_runtime.py',
    '../_base_/sparsity.py',
]

model = dict(
    backbone=dict(
        type='pelk_mm.SLaK', arch='tiny', drop_path_rate=0.1, output_norms=False
    ),
    neck=dict(channels=998),
    head=dict(in_channels=998),
)
default_hooks = dict(**_base_.framework_hooks, sparsity=_base_.sparsity)
