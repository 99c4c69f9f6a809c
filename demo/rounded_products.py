"""Products of bfloat16 numbers as instructions for bfloat16 compute them."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

ATEN = torch.ops.aten
PRODUCTS = {
    ATEN.convolution.default,
    ATEN.convolution_backward.default,
    ATEN.mm.default,
    ATEN.addmm.default,
    ATEN.bmm.default,
    ATEN.baddbmm.default,
}


class RoundedProducts(TorchDispatchMode):
    """Compute torch's convolutions and matrix products of bfloat16 in float32.

    The operands are bfloat16 numbers, sums are float32 and the result is rounded once.
    So do ``avx512_bf16`` and ``amx_bf16``, but for the order of the sums. Without these
    instructions torch convolves in bfloat16 by code that takes twenty times as long.
    All other operators are torch's and ours.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
        return tree_map_only(Tensor, Tensor.bfloat16, func(*args, **kwargs))
