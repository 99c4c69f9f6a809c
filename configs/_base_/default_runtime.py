# What every config needs, whichever framework it is for.
custom_imports = dict(imports=['pelk_mm'], allow_failed_imports=False)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
log_level = 'INFO'
# Curves as JSON, which `pelk-mm plot_logs` draws, and for TensorBoard where that is
# installed: mmengine's backend for it raises an ImportError where it is not. (A folder
# named tensorboard in the working directory is found too, but has no origin.)
vis_backends = [dict(type='LocalVisBackend')]
if getattr(__import__('importlib.util').util.find_spec('tensorboard'), 'origin', None):
    vis_backends.append(dict(type='TensorboardVisBackend'))
load_from = None
resume = False
