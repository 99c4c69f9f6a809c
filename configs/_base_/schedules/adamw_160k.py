# 160k iterations of 8 GPUs x 2 images, linear warm-up, then linear decay to zero; for
# segmenters and detectors. The default hooks are here because they count iterations or
# epochs; those of the framework are in its runtime.
max_iters = 160_000
warmup_iters = 1500
interval = 16_000

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=interval)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warmup_iters),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=0.0,
        by_epoch=False,
        begin=warmup_iters,
        end=max_iters,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)

log_processor = dict(by_epoch=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=interval),
    finite_loss=dict(type='FiniteLossHook'),
    # With randomness=dict(seed=0) a resumed run is the uninterrupted one.
    iteration_seed=dict(type='IterationSeedHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    rank_data=dict(type='RankDataHook'),
)
