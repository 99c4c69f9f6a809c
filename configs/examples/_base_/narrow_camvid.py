# What the examples share, segmenters and pre-trainings: CamVid's classes and their
# colours, and the widths and depths of the narrow backbones.
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
# Most of the blocks where the maps are small and a block takes least.
narrow = dict(channels=[32, 64, 96, 128], depths=[1, 1, 4, 1])
