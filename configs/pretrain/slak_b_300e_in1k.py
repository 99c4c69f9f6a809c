# SLaK-B on ImageNet-1K: 84.0 top-1 in the paper. Drop path and updates of the
# masks are those of the released command.
_base_ = './slak_s_300e_in1k.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    neck=dict(channels=1331),
    head=dict(in_channels=1331),
)
