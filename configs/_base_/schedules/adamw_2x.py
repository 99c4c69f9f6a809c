# 24 epochs of 8 GPUs x 2 images, the rate divided by 10 after epochs 16 and 22.
_base_ = './adamw_3x.py'

max_epochs = 24

train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        milestones=[16, 22],
        gamma=0.1,
    ),
]
