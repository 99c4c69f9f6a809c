# COCO with masks. The short side is resized to 480 to 800, in half of the cases after
# another resizing and a crop, as DETR and after it ConvNeXt and SLaK train. A model
# without masks takes coco_detection.py: its evaluation would fail here.
data_root = 'data/coco/'
val_annotations = 'annotations/instances_val2017.json'
dataset = dict(type='CocoDataset', data_root=data_root)
# Each is the limit of the long side and the length of the short one.
sides = [(1333, short) for short in range(480, 801, 32)]
sides_to_crop_from = [(4200, short) for short in (400, 500, 600)]

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='RandomChoiceResize', scales=sides, keep_ratio=True)],
            [
                dict(
                    type='RandomChoiceResize',
                    scales=sides_to_crop_from,
                    keep_ratio=True,
                ),
                dict(
                    type='RandomCrop',
                    crop_type='absolute_range',
                    crop_size=(384, 600),
                    allow_negative_crop=True,
                ),
                dict(type='RandomChoiceResize', scales=sides, keep_ratio=True),
            ],
        ],
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    # The metric reads the ground truth from the annotation file, at its original size.
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        **dataset,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        ann_file=val_annotations,
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='CocoMetric', ann_file=data_root + val_annotations, metric=['bbox', 'segm']
)
test_evaluator = val_evaluator
