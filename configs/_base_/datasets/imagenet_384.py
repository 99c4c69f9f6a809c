# ImageNet-1K at 384 x 384. Test images are resized as a whole, without a margin to crop
# away, as ConvNeXt's released script does from this size on.
_base_ = './imagenet.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1]['scale'] = 384
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=384, **_base_.bicubic),
    dict(type='PackInputs'),
]

train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=32, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
