# 300 epochs at 4096 images a step: 8 GPUs x 128 images x 4 iterations. AdamW, 20 epochs
# of linear warm-up, then a cosine to 1e-6, no weight decay on norms, biases, layer
# scales and positional embeddings, averaged weights (EMA): ConvNeXt, table 5, and
# SLaK's released script, which all PeLK and SLaK are trained by. The default hooks are
# here because they count epochs; those of the framework are in its runtime.
max_epochs = 300
warmup_epochs = 20
# Iterations whose gradients are summed to a step. Change it by set_accumulation of
# pelk_mm.engine, since EMA and auto_scale_lr depend on it.
accumulative_counts = 4

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    accumulative_counts=accumulative_counts,
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05),
    # The same rate for all layers. It is here for what it leaves without weight decay.
    constructor='LargeKernelLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(decay_rate=1.0),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6,
        begin=0,
        end=warmup_epochs,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        begin=warmup_epochs,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
# mmengine scales the rate by GPUs x batch_size over this, whatever is accumulated.
auto_scale_lr = dict(enable=False, base_batch_size=4096 // accumulative_counts)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # An average over steps, not over iterations, and of BatchNorms' statistics too, as
    # timm's is. What is validated and saved under state_dict is the average.
    ema=dict(
        type='EMAHook', momentum=1e-4, interval=accumulative_counts, update_buffers=True
    ),
    checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=3),
    finite_loss=dict(type='FiniteLossHook'),
    # With randomness=dict(seed=0) a resumed run is the uninterrupted one.
    iteration_seed=dict(type='IterationSeedHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    rank_data=dict(type='RankDataHook'),
)
