# RepLKNet-31L of ImageNet-22K with UperNet on ADE20K in crops of 640: 52.4 mIoU
# single-scale in the paper.
_base_ = './upernet_replknet_31b_22k_ade20k.py'

model = dict(
    backbone=dict(arch='31L'),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
