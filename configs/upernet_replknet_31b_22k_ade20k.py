# RepLKNet-31B of ImageNet-22K with UperNet on ADE20K in crops of 640: 51.5 mIoU
# single-scale in the paper. Images are 1.25 times as large as for crops of 512.
_base_ = './upernet_replknet_31b_ade20k.py'

__import__('pelk_mm').engine.set_crop_size(_base_, 640, scale=(2560, 640))
