# A classifier as ConvNeXt and SLaK are pre-trained: mean of the last map, LayerNorm,
# linear layer. A leaf names the backbone and its width, here and in `neck` and `head`.
# mmpretrain has a RepLKNet of its own; the scope pelk_mm says that ours is meant.
# Mixup, cutmix and label smoothing: ConvNeXt, table 5, as SLaK's released script and
# RepLKNet's have them (each batch gets one of the two).
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    # The stages before the last one are run and trained, without a norm of their own.
    backbone=dict(out_indices=[3]),
    neck=dict(type='pelk_mm.PooledLayerNorm'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    train_cfg=dict(
        augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
    ),
)
