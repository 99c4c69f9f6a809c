# RepLKNet-31B on ImageNet-1K: 83.5 top-1 in the paper. 2048 images a step (8
# GPUs x 64 x 4 iterations), 10 epochs of warm-up, drop path 0.5: its released command
# for one machine. A BatchNorm follows the last map, before the mean. It is dense.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_300e.py',
    '../_base_/mmpretrain_runtime.py',
]

model = dict(
    backbone=dict(
        type='pelk_mm.RepLKNet',
        arch='31B',
        drop_path_rate=0.5,
        norm_intermediate_features=True,
    ),
    neck=dict(_delete_=True, type='GlobalAveragePooling'),
    head=dict(in_channels=1024),
)
train_dataloader = dict(batch_size=64)
_base_.param_scheduler[0]['end'] = _base_.param_scheduler[1]['begin'] = 10
auto_scale_lr = dict(base_batch_size=2048 // _base_.accumulative_counts)
default_hooks = dict(**_base_.framework_hooks)
