_base_ = './default_runtime.py'

default_scope = 'mmseg'
visualizer = dict(
    type='SegLocalVisualizer',
    vis_backends=[dict(type='LocalVisBackend')],
    name='visualizer',
)
log_processor = dict(by_epoch=False)
tta_model = dict(type='SegTTAModel')
