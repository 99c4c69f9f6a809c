# A narrow PeLK with the real kernel sizes learns four images of COCO by heart: minutes
# on two CPU cores. demo/overfit.py picks the images and sets their data root.
_base_ = [
    '../_base_/models/cascade_mask_rcnn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_160k.py',
    '../_base_/mmdet_runtime.py',
]

# Varying image sizes: nothing that is tuned for one of them pays.
env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend='gloo'))

width = 64
# Few regions per image: their statistics would not do for a BatchNorm.
norm_cfg = dict(type='GN', num_groups=8)
# Every sample of a bin costs, forward and more so backward.
roi_extractor = dict(out_channels=width, roi_layer=dict(sampling_ratio=1))
model = dict(
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
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=width, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=width, feat_channels=width),
    roi_head=dict(
        bbox_roi_extractor=roi_extractor,
        bbox_head=[
            dict(
                type='ConvFCBBoxHead',
                num_shared_convs=1,
                num_shared_fcs=1,
                in_channels=width,
                conv_out_channels=width,
                fc_out_channels=256,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', target_stds=[s, s, 2 * s, 2 * s]
                ),
                reg_class_agnostic=True,
                reg_decoded_bbox=True,
                norm_cfg=norm_cfg,
                loss_cls=dict(
                    type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0
                ),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
            )
            for s in (0.1, 0.05, 0.033)
        ],
        mask_roi_extractor=roi_extractor,
        mask_head=dict(
            num_convs=2,
            in_channels=width,
            conv_out_channels=width,
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=overlap,
                    neg_iou_thr=overlap,
                    min_pos_iou=overlap,
                    match_low_quality=False,
                    ignore_iof_thr=-1,
                ),
                sampler=dict(
                    type='RandomSampler',
                    num=32,
                    pos_fraction=0.25,
                    neg_pos_ub=-1,
                    add_gt_as_proposals=True,
                ),
                mask_size=28,
                pos_weight=-1,
                debug=False,
            )
            for overlap in (0.5, 0.6, 0.7)
        ],
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)

scale = (256, 256)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
loading = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=2,
    **loading,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    batch_sampler=None,
    dataset=dict(pipeline=train_pipeline),
)
# Evaluated on the very images that it is trained on.
val_dataloader = dict(
    **loading, dataset=dict(data_prefix=dict(img='train2017/'), pipeline=test_pipeline)
)
test_dataloader = val_dataloader

max_iters = 900
train_cfg = dict(max_iters=max_iters, val_interval=300)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=35.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=50,
        end=max_iters,
        eta_min_ratio=0.01,
    ),
]
default_hooks = dict(
    **_base_.framework_hooks,
    logger=dict(interval=20),
    checkpoint=dict(interval=max_iters),
)
log_processor = dict(window_size=20)
randomness = dict(seed=0)
