"""``F.linear`` on the CPU by the library that is the faster one there.

torch computes float32 products by MKL, which on processors that are not Intel's falls
behind oneDNN (torch has both). Which one is taken is a rule and not a timing, so that
results are the same from run to run. docs/performance.md has the measurements.
"""

import functools
import os
import platform
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelk_mm.processor import cpu_fields

from ._torch_compat import (
    has_onednn,
    in_forward_mode,
    is_traced,
    onednn_linear,
    onednn_pack,
)
from .problem import dtype_name
from .switch import is_plain

#: 'torch' leaves products to `F.linear`, 'onednn' to oneDNN where that can compute.
ENVIRONMENT_VARIABLE = 'PELK_MM_LINEAR'
LIBRARIES = ('torch', 'onednn')

#: Rows that weights are packed for.
PACKED_ROWS = 4096


@functools.cache
def processor_vendor() -> str:
    """Name of who made the processor, as the processor gives it; '' if unknown."""
    # What Windows tells ends with it.
    return cpu_fields().get('vendor_id') or platform.processor()


def faster_library() -> str:
    """Library for float32 products: the environment's, else the rule's.

    Raises:
        ValueError: The environment names none of `LIBRARIES`.
    """
    asked = os.environ.get(ENVIRONMENT_VARIABLE)
    if asked:
        if asked not in LIBRARIES:
            raise ValueError(
                f'{ENVIRONMENT_VARIABLE}={asked} is none of {", ".join(LIBRARIES)}; '
                'choose one of them or unset it for the expected fastest'
            )
        return asked
    # Measured on AMD's. On Intel's MKL is at home, and elsewhere torch has no MKL.
    mkl = torch.backends.mkl.is_available()
    return 'onednn' if mkl and 'AMD' in processor_vendor() else 'torch'


class PackedWeight(NamedTuple):
    """A frozen layer's weight in oneDNN's own layout.

    Attributes:
        weight: Opaque to everything but `packed_linear`.
        bias: Bias in the same data type, or None.
        dtype: Data type of the products.
        source: What the weight was packed from, see `pack`.
    """

    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    source: tuple[Any, ...]


def _identify(*tensors: Tensor | None) -> tuple[Any, ...]:
    """What changes with the contents of tensors."""
    return tuple(
        t if t is None else (t.data_ptr(), t._version, t.dtype, t.device)
        for t in tensors
    )


def why_not_packed(weight: Tensor, dtype: torch.dtype) -> str | None:
    """The reason why a weight cannot be packed, as a sentence, or None."""
    if weight.device.type != 'cpu':
        return f'it is on {weight.device}; packing is for the CPU'
    if not has_onednn(dtype):
        return (
            f'oneDNN does not multiply {dtype_name(dtype)} on this processor with '
            'this torch'
        )
    if weight.is_inference():
        return 'it was made under torch.inference_mode, which hides later changes'
    if dtype == torch.float32 and faster_library() != 'onednn':
        return 'F.linear is expected to be the faster one for float32 here'
    return None


@torch.no_grad()
def pack(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None
) -> PackedWeight | None:
    """Pack a weight once, so that products need not reorder it at every call.

    Args:
        weight: Weight of shape (C_out, C_in).
        bias: Bias of shape (C_out,), or None.
        dtype: Data type to pack in; by default that of the weight.

    Returns:
        The packed weight, of about the same size; None where `why_not_packed` has a
        reason.
    """
    dtype = dtype or weight.dtype
    if why_not_packed(weight, dtype) is not None:
        return None
    packed = onednn_pack(weight.detach().to(dtype).contiguous(), PACKED_ROWS)
    if packed is None:
        return None
    low = None if bias is None else bias.detach().to(dtype)
    return PackedWeight(packed, low, dtype, _identify(weight, bias))


def _working_dtype(x: Tensor) -> torch.dtype:
    """Data type of products with ``x``: its own, or that of autocast."""
    if torch.is_autocast_enabled('cpu') and x.dtype in (torch.float32, torch.bfloat16):
        return torch.get_autocast_dtype('cpu')
    return x.dtype


def _may_leave_torch(*tensors: Tensor | None) -> bool:
    """Whether a call may go to oneDNN's operator: nobody traces it, it is all here."""
    return not (
        is_plain()
        or is_traced()
        or in_forward_mode()
        or any(
            t is not None
            and (type(t) not in (Tensor, nn.Parameter) or t.device.type != 'cpu')
            for t in tensors
        )
    )


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in tensors
    )


def may_overwrite(*tensors: Tensor | None) -> bool:
    """Whether what is computed from tensors may be overwritten by the next step.

    It may where no gradient needs it and nobody records the steps.
    """
    return not _needs_grad(*tensors) and _may_leave_torch(*tensors)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None, packed: PackedWeight) -> bool:
    """Whether a packed weight stands for a weight in a call."""
    return (
        _working_dtype(x) == packed.dtype
        # A tensor made under inference mode has no version to compare.
        and not weight.is_inference()
        and packed.source == _identify(weight, bias)
        and has_onednn(packed.dtype)
    )


def prefers_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, packed: PackedWeight | None
) -> bool:
    """Whether `linear` would compute a 1 x 1 convolution by oneDNN, without gradients.

    For torch's convolution does so too, and needs no more than a packed weight's help.
    """
    if packed is not None and _fits(x, weight, bias, packed):
        return True
    return _is_for_onednn(x, weight, bias)


def _is_for_onednn(*tensors: Tensor | None) -> bool:
    """Whether oneDNN is the faster one for a product of tensors."""
    return (
        all(t is None or t.dtype == torch.float32 for t in tensors)
        and not torch.is_autocast_enabled('cpu')
        and has_onednn(torch.float32)
        and faster_library() == 'onednn'
    )


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    packed: PackedWeight | None = None,
) -> Tensor:
    """``F.linear(x, weight, bias)``, by the faster library.

    Float32 products and gradients to the input go to oneDNN where that is expected to
    be faster (or ``PELK_MM_LINEAR`` says so), all others, and whatever is traced,
    compiled, exported, counted or on another device, through ``F.linear``.

    Args:
        x: Input of shape (..., C_in).
        weight: Weight of shape (C_out, C_in).
        bias: Bias of shape (C_out,), or None.
        packed: The same two by `pack`. Not used where gradients are needed, the data
            type of the products is another, or either has changed since.

    Returns:
        Output of shape (..., C_out), contiguous.
    """
    if not _may_leave_torch(x, weight, bias) or not x.numel():
        return F.linear(x, weight, bias)
    if _needs_grad(x, weight, bias):
        if _is_for_onednn(x, weight, bias):
            return _Linear.apply(x, weight, bias)
    elif packed is not None and _fits(x, weight, bias, packed):
        return _by_onednn(x.to(packed.dtype), packed.weight, packed.bias)
    elif _is_for_onednn(x, weight, bias):
        return _by_onednn(x, weight, bias)
    return F.linear(x, weight, bias)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = onednn_linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return out.view(*x.shape[:-1], out.shape[-1])


class _Linear(torch.autograd.Function):
    """The products by oneDNN, but for the weight's gradient, where MKL is as fast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        # `linear` and the others can be differentiated again.
        return (
            linear(grad, weight.t()) if needs_x else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )
