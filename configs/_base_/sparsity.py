# 40 % of the backbone's weights at zero, as PeLK and SLaK are trained; where the
# training starts from sparse weights, such as SLaK's released ones, their own zeros.
# mmengine does not allow two bases to set the same key, so a config that inherits this
# file adds the hook itself:
#     default_hooks = dict(**_base_.framework_hooks, sparsity=_base_.sparsity)
# To turn it off, there, in a config that inherits it or after --cfg-options:
#     default_hooks = dict(sparsity=dict(mode='off'))
# These rates are those of the tiny models; small and base ones have
#     default_hooks = dict(sparsity=dict(update_interval=100, prune_rate=0.3))
sparsity = dict(
    type='DynamicSparsityHook',
    sparsity=0.4,
    mode='auto',
    init='snip',
    growth='random',
    update_interval=2000,
    prune_rate=0.5,
)
