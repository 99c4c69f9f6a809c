"""torch's own convolution in either layout: any device, any floating-point dtype."""

import contextlib
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problem import Problem
from .base import (
    Backend,
    Passes,
    cpu_cost,
    dense_kernel,
    input_gradient,
    parameter_gradient,
)

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


class TorchConv(Backend):
    """``torch.nn.functional.conv2d`` of dense kernels, a group per channel.

    On the CPU float16 and bfloat16 are computed in float32, for accuracy and speed.

    Args:
        name: 'channels_last' or 'nchw', the layout to compute in.
    """

    stands_in: ClassVar[bool] = True

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
        with _without_autocast(problem.device):
            out = F.conv2d(
                x.to(dtype).contiguous(memory_format=self.layout),
                dense_kernel(problem, weight).to(dtype).unsqueeze(1),
                None if bias is None else bias.to(dtype),
                padding=_padding(problem),
                groups=problem.shape[1],
            )
        return out.to(problem.dtype).contiguous(memory_format=problem.memory_format)

    def backward(
        self,
        problem: Problem,
        x: Tensor | None,
        grad: Tensor,
        weight: Tensor,
        needs_x: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Differentiate; on the CPU the input's gradient is a forward pass.

        oneDNN's backward pass to the input of a depthwise convolution has no fast
        path for large kernels.
        """
        grad_x = grad_weight = None
        dtype = _working_dtype(problem)
        as_forward = needs_x and problem.device == 'cpu'
        if as_forward:
            grad_x = input_gradient(self, problem, grad, weight)
        mask = [needs_x and not as_forward, x is not None, False]
        if any(mask):
            operand = grad.to(dtype).contiguous(memory_format=self.layout)
            # What only the other gradient needs lends its shape alone.
            image = operand if x is None else x.to(dtype)
            kernel = (
                dense_kernel(problem, weight).to(dtype).unsqueeze(1)
                if mask[0]
                else operand.new_empty(problem.shape[1], 1, *problem.kernel)
            )
            with _without_autocast(problem.device):
                found = torch.ops.aten.convolution_backward(
                    operand,
                    image.contiguous(memory_format=self.layout),
                    kernel,
                    None,
                    [1, 1],
                    _padding(problem),
                    [1, 1],
                    False,
                    [0, 0],
                    problem.shape[1],
                    mask,
                )
            if mask[0]:
                grad_x = found[0].to(problem.dtype)
                grad_x = grad_x.contiguous(memory_format=problem.memory_format)
            if mask[1]:
                dense = found[1].squeeze(1).to(problem.accumulation_dtype)
                grad_weight = parameter_gradient(problem, weight, dense)
        return grad_x, grad_weight

    def cost(self, problem: Problem, passes: Passes) -> float:
        """Estimate the time; measured on the CPU up to float32."""
        return cpu_cost(problem, self.name, passes, COSTS, TERMS)


def _working_dtype(problem: Problem) -> torch.dtype:
    cpu = problem.device == 'cpu' and not problem.plain
    return problem.accumulation_dtype if cpu else problem.dtype


def _padding(problem: Problem) -> list[int]:
    return [problem.kernel[0] // 2, problem.kernel[1] // 2]


def _without_autocast(device: str) -> contextlib.AbstractContextManager:
    """Turn autocast off where it is on; to turn it off always costs microseconds."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
