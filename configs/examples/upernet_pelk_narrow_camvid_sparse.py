# The narrow PeLK with 40 % of the backbone's weights at zero; see docs/sparsity.md.
_base_ = './upernet_pelk_narrow_camvid.py'

default_hooks = dict(
    sparsity=dict(type='DynamicSparsityHook', sparsity=0.4, update_interval=200)
)
