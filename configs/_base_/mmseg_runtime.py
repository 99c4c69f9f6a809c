# What every segmenter needs. mmengine does not allow two bases to set the same key, and
# default_hooks are the schedule's, so a config that inherits both adds these itself:
#     default_hooks = dict(**_base_.framework_hooks)
_base_ = './default_runtime.py'

default_scope = 'mmseg'
visualizer = dict(
    type='SegLocalVisualizer',
    vis_backends=_base_.vis_backends,
    name='visualizer',
)
tta_model = dict(type='SegTTAModel')
framework_hooks = dict(
    visualization=dict(type='SegVisualizationHook'),
    data_check=dict(type='SegDataCheckHook'),
)
