# The same segmenter, started from presence_pelk_narrow_camvid.py, which
# demo/camvid.py trains first, with the seed of the run.
_base_ = './upernet_pelk_narrow_camvid.py'

pretraining = 'presence_pelk_narrow_camvid.py'
model = dict(
    backbone=dict(
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            checkpoint='work_dirs/presence_pelk_narrow_camvid/iter_1500.pth',
            prefix='backbone.',
        )
    )
)
