"""Re-parameterisation: parallel depthwise convolutions that merge for deployment.

Structural re-parameterisation of large kernels is RepLKNet's (section 3, guideline 3);
SLaK (section 3.2) splits the large kernel into two stripes and keeps the small one.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .conv_norm import ConvNorm
from .depthwise import DepthwiseConv2d, add_centred


class ReparamDepthwise(nn.Module):
    """Sum of depthwise convolutions over the same input, a norm after each.

    In the deployment form the norms are folded and kernels that fit the centre of the
    first convolution are merged into it; the other convolutions remain.

    Args:
        convs: The convolutions by name, without biases; the names become the
            branches' attributes. A `DepthwiseConv2d`, or a module with the same
            attributes and the same ``absorbs``.
        norm_cfg: mm config of the norm after each, or None for none.
        deploy: Whether to build the deployment form.
    """

    def __init__(
        self, convs: Mapping[str, Any], norm_cfg: dict | None, deploy: bool = False
    ) -> None:
        super().__init__()
        first = next(iter(convs.values()))
        for name, conv in convs.items():
            if not deploy:
                self.add_module(name, ConvNorm(conv, norm_cfg))
            elif conv is first or not first.absorbs(conv.kernel_size):
                conv.bias = nn.Parameter(torch.zeros(conv.channels))
                self.add_module(name, conv)

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        """Sum the branches over ``x`` of shape (N, C, H, W); the shape stays.

        Args:
            x: The feature map.
            args: Further arguments of the first branch.
        """
        first, *others = self.children()
        return sum((conv(x) for conv in others), first(x, *args))

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Fold the norms and merge kernels that fit into the first convolution."""
        for name, branch in list(self.named_children()):
            if isinstance(branch, ConvNorm):
                setattr(self, name, branch.fold())
        branches: list[tuple[str, Any]] = list(self.named_children())
        (_, first), *others = branches
        for name, conv in others:
            if first.absorbs(conv.kernel_size):
                first.weight.copy_(add_centred(first.weight, conv.weight))
                first.bias += conv.bias
                delattr(self, name)


def large_and_small(
    channels: int, kernel_size: int, small_kernel: int | None
) -> dict[str, DepthwiseConv2d]:
    """Branches of a dense large kernel and, unless None, a small one.

    Raises:
        ValueError: If a size is not odd or the small kernel is larger than the large.
    """
    convs = {'large': DepthwiseConv2d(channels, kernel_size)}
    if small_kernel is not None:
        check_small_kernel(small_kernel, kernel_size)
        convs['small'] = DepthwiseConv2d(channels, small_kernel)
    return convs


def stripes_and_small(
    channels: int, kernel_size: int, small_kernel: int
) -> dict[str, DepthwiseConv2d]:
    """Branches of SLaK: a K x k stripe, a k x K stripe and a k x k kernel.

    Raises:
        ValueError: If a size is not odd or the small kernel is larger than the large.
    """
    check_small_kernel(small_kernel, kernel_size)
    return {
        'vertical': DepthwiseConv2d(channels, (kernel_size, small_kernel)),
        'horizontal': DepthwiseConv2d(channels, (small_kernel, kernel_size)),
        'small': DepthwiseConv2d(channels, small_kernel),
    }


def check_small_kernel(small_kernel: int, kernel_size: int) -> None:
    """Raise a ``ValueError`` if a small kernel is larger than the large one."""
    if small_kernel > kernel_size:
        raise ValueError(
            f'small_kernel {small_kernel} is larger than the large kernel {kernel_size}'
        )
