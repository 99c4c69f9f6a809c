# CamVid in the split of SegNet (367, 101 and 233 images of 480 x 360; 11 classes and
# void, 255) as a data set of one's own, and what narrow backbones on it have in common:
# widths, depths, head, loss, augmentation and schedule. For random weights and two CPU
# cores. A leaf names the backbone; demo/camvid.py trains, tests and compares them.
_base_ = [
    './narrow_camvid.py',
    '../../_base_/models/upernet.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/adamw_160k.py',
    '../../_base_/mmseg_runtime.py',
]

# Inverse cube roots of the classes' shares of the training pixels, 1 on average. Square
# roots find a few more signs and poles, and take so many buildings for them that the
# buildings' IoU in validation is five points lower.
class_weight = [0.9, 0.8, 2.4, 0.8, 1.5, 1.1, 2.3, 2.3, 1.3, 2.8, 3.7]

# Two thirds of an image's sides: in the same time, more and smaller crops had the
# higher validation mIoU. Tested are windows of the same size: on whole images large
# kernels see more than they ever did in training.
crop_size, scale = (240, 320), (480, 360)

edit = __import__('pelk_mm').engine
edit.set_num_classes(_base_, len(_base_.classes))
edit.set_crop_size(_base_, crop_size, scale=scale)

data = dict(type='BaseSegDataset', **_base_.camvid)
load = dict(type='LoadImageFromFile')
even_contrast = dict(type='CLAHE', **_base_.even_contrast)
train_pipeline = [
    load,
    even_contrast,
    dict(type='LoadAnnotations'),
    # Never smaller than the crop: what would be padded costs as much as what is seen.
    dict(type='RandomResize', scale=scale, ratio_range=(0.7, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion', **_base_.photometric),
    # Before labels are halved: the batch's own padding would add as much to them as to
    # images. Only where crops are larger than the smallest images.
    dict(type='Pad', size=crop_size[::-1], pad_val=dict(img=0, seg=255)),
    # The loss of all pixels takes a sixth of an iteration. At half of the sides, still
    # twice those of the logits, it takes a quarter of that.
    dict(type='SegRescale', scale_factor=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    load,
    even_contrast,
    dict(type='Resize', scale=scale, keep_ratio=True),
    # After Resize: predictions are compared with labels of the original size.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
# No third process on two busy cores, as in configs/demo.
loading = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=4,
    **loading,
    dataset=dict(
        **data,
        data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    **loading,
    dataset=dict(
        **data,
        data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    **loading,
    dataset=dict(
        **data,
        data_prefix=dict(img_path='img_dir/test', seg_map_path='ann_dir/test'),
        pipeline=test_pipeline,
    ),
)

model = dict(
    decode_head=dict(
        in_channels=_base_.narrow['channels'],
        channels=24,
        norm_cfg=dict(type='BN', requires_grad=True),
        loss_decode=dict(
            class_weight=class_weight,
            # mmengine takes the mean. mmseg's own would look up the weight of 255.
            reduction='none',
        ),
    ),
    auxiliary_head=None,
)

max_iters = 5000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 5)
optim_wrapper = dict(
    optimizer=dict(lr=3e-3, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(
        type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=300, end=max_iters
    ),
]
default_hooks = dict(
    **_base_.framework_hooks,
    # What is validated, saved as state_dict and tested is the average.
    ema=_base_.ema,
    checkpoint=dict(
        interval=max_iters // 5, max_keep_ckpts=1, save_best='mIoU', rule='greater'
    ),
)
randomness = dict(seed=0)
