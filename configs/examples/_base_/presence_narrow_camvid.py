# A pre-training that fits two CPU cores: which of CamVid's classes does a crop show?
# The labels are made from the label maps of the training images, so that nothing but
# these is seen. Through mmpretrain; docs/pretrain.md. A leaf names the backbone.
_base_ = [
    './narrow_camvid.py',
    '../../_base_/models/classifier.py',
    '../../_base_/schedules/adamw_160k.py',
    '../../_base_/mmpretrain_runtime.py',
]

num_classes, width = len(_base_.classes), _base_.narrow['channels'][-1]
# Of a whole image nearly all classes are true, of so small a crop about a third.
crop_size, scale = (128, 128), (480, 360)

load = [
    dict(type='LoadImageFromFile'),
    dict(type='mmseg.CLAHE', **_base_.even_contrast),
    dict(type='mmseg.LoadAnnotations'),
]
label_and_pack = [
    dict(type='ClassPresence', num_classes=num_classes, min_share=0.01),
    dict(type='PackInputs'),
]
train_pipeline = [
    *load,
    dict(
        type='mmseg.RandomResize', scale=scale, ratio_range=(0.7, 1.5), keep_ratio=True
    ),
    dict(type='mmseg.RandomCrop', crop_size=crop_size),
    dict(type='mmseg.RandomFlip', prob=0.5),
    dict(type='mmseg.PhotoMetricDistortion', **_base_.photometric),
    *label_and_pack,
]
test_pipeline = [
    *load,
    dict(type='mmseg.Resize', scale=scale, keep_ratio=True),
    # Not the centre, in which a street always ends the same way.
    dict(type='mmseg.RandomCrop', crop_size=crop_size),
    *label_and_pack,
]

data = dict(type='mmseg.BaseSegDataset', **_base_.camvid)
loading = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=32,
    **loading,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **data,
        data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    **loading,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **data,
        data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type='AveragePrecision'), dict(type='MultiLabelMetric')]
test_evaluator = val_evaluator

model = dict(
    data_preprocessor=dict(num_classes=num_classes),
    neck=dict(channels=width),
    head=dict(
        _delete_=True,
        type='MultiLabelLinearClsHead',
        num_classes=num_classes,
        in_channels=width,
        loss=dict(type='CrossEntropyLoss', use_sigmoid=True),
    ),
    # Mixed images would have mixed labels, which the loss takes for several classes.
    train_cfg=None,
)

max_iters = 1500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 5)
optim_wrapper = dict(
    optimizer=dict(lr=2e-3, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=100, end=max_iters
    ),
]
default_hooks = dict(
    **_base_.framework_hooks,
    # What is saved as state_dict, and so what a segmenter starts from, is the average.
    ema=_base_.ema,
    checkpoint=dict(interval=max_iters // 5, max_keep_ckpts=1),
)
randomness = dict(seed=0)
