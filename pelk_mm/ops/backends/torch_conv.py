"""torch's own convolution in either layout: any device, any floating-point dtype."""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from .._torch_compat import under_autocast
from ..problem import Problem
from .base import TorchBackend, dense_kernel

#: Nanoseconds on the CPU, as `benchmarks/selection.py` fits them.
COSTS: dict[str, tuple[float, ...]] = {
    'channels_last': (51100, 0, 2.07, 0.0267, 0.0152),
    'channels_last_weight': (82200, 186, 0, 0.371, 1.26),
    'nchw': (64700, 0, 0.489, 0.0263, 0.913),
    'nchw_weight': (77700, 0, 0, 0.578, 1.24),
}


def _channels_last_terms(problem: Problem) -> tuple[float, ...]:
    # Kernels of these widths fall between two of oneDNN's algorithms.
    slow = problem.products if 10 < problem.kernel[1] < 15 else 0
    return 1, problem.pixels, problem.products, slow


def _nchw_terms(problem: Problem) -> tuple[float, ...]:
    # Above this width oneDNN's kernel gives way to a plain one.
    plain = problem.products if problem.kernel[1] > 13 else 0
    return 1, problem.pixels, problem.products - plain, plain


#: Of each cost, what it is a linear combination of.
TERMS = {
    'channels_last': _channels_last_terms,
    'channels_last_weight': _nchw_terms,
    'nchw': _nchw_terms,
    'nchw_weight': _nchw_terms,
}


class TorchConv(TorchBackend):
    """``torch.nn.functional.conv2d`` of dense kernels, a group per channel.

    On the CPU float16 and bfloat16 are computed in float32, for accuracy and speed.

    Args:
        name: 'channels_last' or 'nchw', the layout to compute in.
    """

    costs, terms = COSTS, TERMS

    def __init__(self, name: str) -> None:
        self.name = name
        layouts = {
            'channels_last': torch.channels_last,
            'nchw': torch.contiguous_format,
        }
        self.layout = layouts[name]

    def why_not(self, problem: Problem) -> str | None:
        """It serves everything."""
        return None

    def forward(
        self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Convolve with expanded kernels."""
        dtype = _working_dtype(problem)
        with _without_autocast(problem):
            out = F.conv2d(
                x.to(dtype).contiguous(memory_format=self.layout),
                dense_kernel(problem, weight).to(dtype).unsqueeze(1),
                None if bias is None else bias.to(dtype),
                padding=_padding(problem),
                # Not the map's channels: tracers know that weights have fixed sizes.
                groups=weight.shape[0],
            )
        if problem.plain:
            return out
        return out.to(problem.dtype).contiguous(memory_format=problem.memory_format)

    def dense_gradient(self, problem: Problem, x: Tensor, grad: Tensor) -> Tensor:
        """Call torch's backward pass for the weight alone.

        Not for the input: there oneDNN's has no fast path for large kernels.
        """
        dtype = _working_dtype(problem)
        grad, x = (
            maps.to(dtype).contiguous(memory_format=self.layout) for maps in (grad, x)
        )
        with _without_autocast(problem):
            dense = torch.ops.aten.convolution_backward(
                grad,
                x,
                x.new_empty(problem.shape[1], 1, *problem.kernel),
                None,
                [1, 1],
                _padding(problem),
                [1, 1],
                False,
                [0, 0],
                problem.shape[1],
                [False, True, False],
            )[1]
        return dense.squeeze(1).to(problem.accumulation_dtype)


def _working_dtype(problem: Problem) -> torch.dtype:
    cpu = problem.device == 'cpu' and not problem.plain
    return problem.accumulation_dtype if cpu else problem.dtype


def _padding(problem: Problem) -> list[int]:
    return [problem.kernel[0] // 2, problem.kernel[1] // 2]


def _without_autocast(problem: Problem) -> contextlib.AbstractContextManager:
    """Turn autocast off where it is on; to turn it off always costs microseconds.

    Not where a tracer may record it: there the operands have autocast's type already.
    """
    device = problem.device
    if not problem.plain and under_autocast(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
