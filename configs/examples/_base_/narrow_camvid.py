# What the examples share, segmenters and pre-trainings: CamVid, how its colours are
# varied, and the widths and depths of the narrow backbones.
classes = (
    'sky',
    'building',
    'pole',
    'road',
    'pavement',
    'tree',
    'sign',
    'fence',
    'car',
    'pedestrian',
    'bicyclist',
)
palette = [
    [128, 128, 128],
    [128, 0, 0],
    [192, 192, 128],
    [128, 64, 128],
    [60, 40, 222],
    [128, 128, 0],
    [192, 128, 128],
    [64, 64, 128],
    [64, 0, 128],
    [64, 64, 0],
    [0, 128, 192],
]
camvid = dict(
    data_root='data/camvid',
    metainfo=dict(classes=classes, palette=palette),
    reduce_zero_label=False,
)
# Stronger than usual: other places, weather and light are tested.
photometric = dict(
    brightness_delta=48, contrast_range=(0.4, 1.6), saturation_range=(0.4, 1.6)
)
# Most of the blocks where the maps are small and a block takes least.
narrow = dict(channels=[32, 64, 96, 128], depths=[1, 1, 4, 1])
