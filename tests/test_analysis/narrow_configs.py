"""Configs of narrow models, as files that a worker can read."""

NARROW = """
default_scope = 'mmseg'
arch = {arch!r}
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 96)),
    backbone=dict(
        type={kind!r}, arch=arch, out_indices=(0, 1), in_channels={channels}
    ),
    decode_head=dict(
        type='FCNHead', in_channels=16, in_index=1, channels=8, num_classes=5,
        num_convs=1, norm_cfg=dict(type='SyncBN'), concat_input=False,
    ),
)
"""
ARCHS = {
    'PeLK': dict(
        channels=[8, 16], depths=[1, 1], kernel_sizes=[11, 9], central_radius=2
    ),
    'SLaK': dict(channels=[8, 16], depths=[1, 1], kernel_sizes=[11, 9]),
    'RepLKNet': dict(channels=[8, 16], depths=[1, 1], kernel_sizes=[11, 9]),
}


def write_narrow(folder, kind='PeLK', channels=3, wide=False):
    """Write the config of a narrow segmenter; returns its path.

    Args:
        folder: Where it goes.
        kind: Type of the backbone.
        channels: Those of the images.
        wide: Whether its first kernels have cells that are worth box sums.
    """
    path = folder / f'narrow_{kind.lower()}_{channels}{"_wide" * wide}.py'
    arch = ARCHS[kind] | (dict(kernel_sizes=[51, 9]) if wide else {})
    path.write_text(NARROW.format(kind=kind, arch=arch, channels=channels))
    return str(path)
