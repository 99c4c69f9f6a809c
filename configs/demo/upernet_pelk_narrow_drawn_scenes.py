# A narrow PeLK with the real kernel sizes, UperNet, drawn scenes in ADE20K's layout:
# minutes on two CPU cores. `make demo` trains it; demo/demo.py sets the data root.
_base_ = [
    '../_base_/models/upernet.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_160k.py',
    '../_base_/mmseg_runtime.py',
]

norm_cfg = dict(type='BN', requires_grad=True)
crop_size = (128, 128)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        type='PeLK',
        arch=dict(
            channels=[32, 64, 128, 256],
            depths=[1, 1, 2, 1],
            kernel_sizes=[51, 49, 47, 13],
            central_radius=2,
        ),
        layer_scale_init_value=1.0,
    ),
    decode_head=dict(
        in_channels=[32, 64, 128, 256],
        channels=64,
        norm_cfg=norm_cfg,
        loss_decode=dict(avg_non_ignore=True),
    ),
    auxiliary_head=None,
    test_cfg=dict(_delete_=True, mode='whole'),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize',
        scale=(192, 144),
        ratio_range=(0.9, 1.5),
        keep_ratio=True,
    ),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
# Loading takes a few milliseconds per image, less than it costs two busy cores to
# run a third process.
loading = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=4, **loading, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(**loading, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_iters = 1000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 5)
optim_wrapper = dict(
    optimizer=dict(lr=1.5e-3),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=50, end=max_iters
    ),
]
default_hooks = dict(
    **_base_.framework_hooks,
    logger=dict(interval=20),
    checkpoint=dict(interval=max_iters, max_keep_ckpts=1),
)
randomness = dict(seed=0)
