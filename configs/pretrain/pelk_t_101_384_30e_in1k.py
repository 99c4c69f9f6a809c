# PeLK-T-101 fine-tuned on ImageNet-1K at 384 x 384, from the classifier that
# pelk_t_101_300e_in1k trains:
#     pelk-mm train pelk_t_101_384_30e_in1k --cfg-options load_from=epoch_300.pth
# Its zeros stay where they are. The paper does not give this recipe: all of it is
# ConvNeXt's, which has neither mixup nor cutmix here; drop path is the pre-training's.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_384.py',
    '../_base_/schedules/adamw_30e_finetune.py',
    '../_base_/mmpretrain_runtime.py',
    '../_base_/sparsity.py',
]

model = dict(
    backbone=dict(
        type='pelk_mm.PeLK', arch='tiny-101', drop_path_rate=0.1, output_norms=False
    ),
    neck=dict(channels=998),
    head=dict(in_channels=998),
    train_cfg=None,
)
default_hooks = dict(**_base_.framework_hooks, sparsity=_base_.sparsity)
