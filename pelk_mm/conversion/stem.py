"""Give a backbone's stem another number of input channels."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .records import Record, in_progress

#: The stem's first weight, of PeLK and SLaK and of RepLKNet.
_STEM = 'downsample_layers.0.0.weight', 'downsample_layers.0.0.conv.weight'


def adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """Make a convolution's weight one for images of another number of channels.

    The result computes the same from an image whose channels are all equal, so that
    activations keep their magnitude. Of more channels, each new one gets the mean of
    the old ones' weights, and all are multiplied by old / new number. Of fewer, those
    that are left get an equal share of the weights of those that go.

    Args:
        weight: Weight of shape (C_out, C_in, kh, kw).
        channels: The new C_in, at least 1.

    Returns:
        Weight of shape (C_out, channels, kh, kw) and the same dtype.
    """
    old = weight.shape[1]
    kernel = weight.double()
    if channels > old:
        mean = kernel.mean(1, keepdim=True).expand(-1, channels - old, -1, -1)
        kernel = torch.cat([kernel, mean], 1) * (old / channels)
    elif channels < old:
        others = kernel[:, channels:].sum(1, keepdim=True)
        kernel = kernel[:, :channels] + others / channels
    return kernel.to(weight.dtype)


def adapt_records(
    records: Iterable[Record], backbone: dict[str, Any], channels: int
) -> list[str]:
    """Adapt the stem among a backbone's records, and its config.

    Returns:
        What was done, a sentence; nothing where the stem has these channels already.
    """
    for record in in_progress(records):
        weight = record.tensor
        if record.name not in _STEM or weight is None or weight.shape[1] == channels:
            continue
        old = weight.shape[1]
        record.tensor = adapt_stem(weight, channels)
        backbone.pop('in_channels', None)
        if channels != 3:
            backbone['in_channels'] = channels
        how = (
            f'the new ones got the mean of the others, and all were multiplied by '
            f'{old}/{channels}'
            if channels > old
            else 'those that are left share the weights of those that go'
        )
        return [f'stem: {old} input channels became {channels}; {how}']
    return []
