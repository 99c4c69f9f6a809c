# 40 % of the backbone's weights at zero, as PeLK and SLaK are trained; from weights
# that are sparse already, such as SLaK's released ones, their own zeros. mmengine lets
# two bases not share a key, so a config that inherits this file puts the hook in its
# place itself, with
#     default_hooks = dict(sparsity=_base_.sparsity)
# To turn it off, there, in a config below it or after --cfg-options:
#     default_hooks = dict(sparsity=dict(mode='off'))
# The rates are the tiny models'; small and base ones have
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
