# SLaK-S on ImageNet-1K: 83.8 top-1 in the paper. Drop path and updates of the
# masks are those of the released command.
_base_ = './slak_t_300e_in1k.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.4))
default_hooks = dict(sparsity=dict(update_interval=100, prune_rate=0.3))
