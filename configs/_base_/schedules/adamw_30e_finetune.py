# 30 epochs of fine-tuning a classifier at another size, 512 images a step: 8 GPUs x 32
# images x 2 iterations. ConvNeXt's recipe for 384 x 384 from ImageNet-1K (table 6 and
# its released commands): no warm-up, layer-wise decay 0.7, next to no weight decay, no
# EMA.
_base_ = './adamw_300e.py'

max_epochs = 30
accumulative_counts = 2

train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    accumulative_counts=accumulative_counts,
    optimizer=dict(lr=5e-5, weight_decay=1e-8),
    paramwise_cfg=dict(decay_rate=0.7),
)
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=512 // accumulative_counts)
default_hooks = dict(_delete_=True, **_base_.default_hooks)
del default_hooks['ema']
