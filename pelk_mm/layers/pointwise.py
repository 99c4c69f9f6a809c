"""Pointwise layers: the same linear map at each pixel, and what follows it in place.

They are torch's own layers with torch's own parameters, computed by the faster library
(`pelk_mm.ops.linear`). In inference activations overwrite their input, and a branch of
pointwise layers is computed for some pixels at a time, so that its widest map stays in
the cache.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.drop import DropPath
from torch import Tensor, nn

from pelk_mm.ops._torch_compat import has_global_hooks
from pelk_mm.ops.linear import (
    PackedWeight,
    linear,
    may_overwrite,
    pack,
    prefers_linear,
)

#: Numbers of the widest map that are computed at a time: 8 MiB of float32.
CHUNK = 2**21


class _Pointwise(nn.Module):
    """What the two kinds share: a weight that can be packed, no part of the state."""

    weight: Any
    bias: Any
    packed: PackedWeight | None = None

    def pack(self, dtype: torch.dtype | None = None) -> int:
        """Pack the weight, see `pack_pointwise`; return the bytes that this takes."""
        self.packed = pack(self.weight.flatten(1), self.bias, dtype)
        if self.packed is None:
            return 0
        return self.weight.numel() * self.packed.dtype.itemsize

    def on_rows(self, rows: Tensor) -> Tensor:
        """Apply the layer to (..., C_in)."""
        return linear(rows, self.weight.flatten(1), self.bias, self.packed)

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles have the weight alone.
        return {key: v for key, v in self.__dict__.items() if key != 'packed'}


class PointwiseLinear(_Pointwise, nn.Linear):
    """`nn.Linear` over the last axis, by the faster library."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape (..., C_in) to (..., C_out)."""
        return linear(x, self.weight, self.bias, self.packed)


class PointwiseConv2d(_Pointwise, nn.Conv2d):
    """`nn.Conv2d` with 1 x 1 kernels, in inference by the faster library.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        bias: Whether to add a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape (N, C_in, H, W) to (N, C_out, H, W)."""
        if (
            may_overwrite(x, self.weight, self.bias)
            and x.dim() == 4
            and x.is_contiguous(memory_format=torch.channels_last)
            and prefers_linear(x, self.weight, self.bias, self.packed)
        ):
            return self.on_rows(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return super().forward(x)


def pack_pointwise(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Pack the weights of a model's pointwise layers once, for inference on the CPU.

    Products then need not reorder their weights at every call, which costs most in
    bfloat16. The parameters stay as they are and so does the state dict; a packed
    weight is left out where gradients are needed, under another data type, and once its
    parameter has been changed, moved or replaced. Copies and pickles have none.
    Call it last: after `switch_to_deploy`, loading and casting.

    Args:
        model: A backbone, or a model with one of ours in it.
        dtype: Data type of the products; by default that of the weights. A float32
            model that runs under bfloat16 autocast wants bfloat16.

    Returns:
        Bytes that the packed weights take beside the model's own; 0 where packing is
        of no use: off the CPU, in data types that oneDNN does not multiply on this
        processor, in float32 where `F.linear` is expected to be faster.
    """
    layers = (m for m in model.modules() if isinstance(m, _Pointwise))
    return sum(layer.pack(dtype) for layer in layers)


def lay_out(images: Tensor) -> Tensor:
    """Lay images out channels_last for inference on the CPU.

    What follows keeps the layout that it is given, so that nothing is laid out anew. On
    other devices, where calls are recorded, and in training, where the gradients to a
    convolution's weight would take strides that are not the weight's own, images stay
    as they are.
    """
    if not torch.is_grad_enabled() and images.dim() == 4 and may_overwrite(images):
        return images.contiguous(memory_format=torch.channels_last)
    return images


# ------------------------------------------------------------------ in place


def _is_hooked(*modules: nn.Module) -> bool:
    """Whether hooks may keep what a module, or a part of it, takes or returns."""
    if has_global_hooks():
        return True
    return any(
        part._forward_hooks or part._forward_pre_hooks
        for module in modules
        for part in module.modules()
    )


def _is_owned(out: Tensor, *makers: nn.Module) -> bool:
    """Whether the caller alone has the output of modules, and may overwrite it."""
    return may_overwrite(out) and not _is_hooked(*makers)


def relu(out: Tensor, maker: nn.Module) -> Tensor:
    """ReLU of a module's output, in place where nobody else needs that."""
    return out.relu_() if _is_owned(out, maker) else F.relu(out)


def gelu_(x: Tensor) -> Tensor:
    """The exact (erf) GELU, in place and without gradients."""
    return torch.ops.aten.gelu_(x)


def add_residual(x: Tensor, branch: Tensor, *makers: nn.Module) -> Tensor:
    """``x + branch``, in the place of the branch where nobody else needs that.

    Args:
        x: The block's input of shape (N, C, H, W).
        branch: The output of modules, of the same shape, in memory of its own.
        makers: The modules.
    """
    if (
        x.dtype == branch.dtype
        and x.stride() == branch.stride()
        and may_overwrite(x)
        and _is_owned(branch, *makers)
    ):
        return branch.add_(x)
    return x + branch


def _treats_pixels_alone(module: nn.Module) -> bool:
    if isinstance(module, DropPath):
        return not module.training
    if isinstance(module, nn.GELU):
        return module.approximate == 'none'  # as `gelu_` is
    return isinstance(module, (_Pointwise, nn.LayerNorm, nn.Identity))


def add_in_chunks(
    x: Tensor,
    source: Tensor,
    branch: Callable[[Tensor], Tensor],
    width: int,
    block: nn.Module,
    parts: Sequence[nn.Module],
) -> Tensor | None:
    """``x + branch(source)`` of a residual block, for some pixels at a time.

    Args:
        x: The block's input of shape (N, C, H, W).
        source: Input of the branch, of the same shape.
        branch: Maps pixels (rows, C) to (rows, C).
        width: Channels of the widest map in between.
        block: The block.
        parts: Its modules that the branch calls.

    Returns:
        The sum, channels_last; None where the maps have to be computed as a whole:
        a gradient or a hook needs them, one of the parts is not pointwise, the layout
        is another, or the calls are recorded.
    """
    if not (
        may_overwrite(x, source)
        and may_overwrite(*block.parameters())
        and all(map(_treats_pixels_alone, parts))
        and not _is_hooked(*parts)
        and x.is_contiguous(memory_format=torch.channels_last)
        and source.is_contiguous(memory_format=torch.channels_last)
        and x.numel()
    ):
        return None
    pixels = [maps.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) for maps in (x, source)]
    rows = max(1, CHUNK // width)
    out = None
    for own, taken in zip(*(maps.split(rows) for maps in pixels), strict=True):
        found = branch(taken)
        if out is None:
            dtype = torch.promote_types(x.dtype, found.dtype)
            out = torch.empty_like(x, dtype=dtype)
            places = iter(out.permute(0, 2, 3, 1).view(-1, x.shape[1]).split(rows))
        torch.add(own, found, out=next(places))
    return out
