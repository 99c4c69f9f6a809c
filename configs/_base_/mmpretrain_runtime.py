# What every classifier needs. mmengine does not allow two bases to set the same key,
# and default_hooks are the schedule's, so a config that inherits both adds these
# itself:
#     default_hooks = dict(**_base_.framework_hooks)
_base_ = './default_runtime.py'

default_scope = 'mmpretrain'
visualizer = dict(
    type='UniversalVisualizer',
    vis_backends=_base_.vis_backends,
    name='visualizer',
)
framework_hooks = dict(visualization=dict(type='VisualizationHook', enable=False))
