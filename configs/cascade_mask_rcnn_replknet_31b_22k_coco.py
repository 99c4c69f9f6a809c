# RepLKNet-31B of ImageNet-22K with Cascade Mask R-CNN on COCO, 3x: 53.0 box and 46.0
# mask AP in the paper. Only the weights that training starts from are others.
_base_ = './cascade_mask_rcnn_replknet_31b_coco.py'
