# 36 epochs of 8 GPUs x 2 images, the rate divided by 10 after epochs 27 and 33. With
# InfiniteSampler, which our data sets of segmenters have, an epoch never ends; so:
#     train_dataloader = dict(sampler=dict(type='DefaultSampler', shuffle=True))
max_epochs = 36

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        milestones=[27, 33],
        gamma=0.1,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)

log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=3),
    finite_loss=dict(type='FiniteLossHook'),
    # With randomness=dict(seed=0) a resumed run is the uninterrupted one.
    iteration_seed=dict(type='IterationSeedHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    rank_data=dict(type='RankDataHook'),
)
