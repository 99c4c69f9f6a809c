"""What a backend of the convolutions is, and what dense backends share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problem import Problem
from ..reference import box_sum, expand_kernel

#: What a backend computes in one call: 'forward', or the gradient to the 'input', to
#: the 'weight' or to both.
Passes = tuple[str, ...]
#: To the input and to the weight, None where not wanted.
Gradients = tuple[Tensor | None, Tensor | None]


class Backend(ABC):
    """One way of computing a depthwise convolution and its gradients.

    All tensors are on the problem's device and not empty. `x`, `grad` and results
    that are feature maps have its shape and dtype, and results its memory format too;
    `weight` may be of another floating-point dtype.

    Attributes:
        name: What `backend=` and `PELK_MM_CONV` call it.
        stands_in: Whether it is chosen only where no other backend can run.
    """

    name: str
    stands_in: ClassVar[bool] = False

    @staticmethod
    def state() -> Hashable:
        """What its answers depend on apart from the problem, if anything."""
        return None

    @abstractmethod
    def why_not(self, problem: Problem) -> str | None:
        """Say why it cannot compute a problem.

        Returns:
            None if it can, else the reason: a clause that goes on after "because".
        """

    @abstractmethod
    def forward(
        self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Convolve.

        Args:
            problem: What is convolved; `why_not` had nothing against it.
            x: Input of shape (N, C, H, W).
            weight: Kernels of shape (C, kh, kw), not clipped, or parameters of shape
                (C, k', k').
            bias: Optional bias of shape (C,).
        """

    def backward(
        self,
        problem: Problem,
        x: Tensor | None,
        grad: Tensor,
        weight: Tensor,
        needs_x: bool,
    ) -> Gradients:
        """Differentiate, by default pass by pass.

        Args:
            problem: That of the gradient to the output.
            x: The input; None where the gradient to the weight is not wanted.
            grad: Gradient to the output.
            weight: As for `forward`.
            needs_x: Whether the gradient to the input is wanted.

        Returns:
            Gradients to the input and, of the accumulation dtype, to the weight; None
            where not wanted.
        """
        grad_x = grad_weight = None
        if needs_x:
            # The adjoint of a correlation is the correlation with the flipped kernel.
            grad_x = self.forward(problem.flipped, grad, weight.flip(-2, -1), None)
        if x is not None:
            dense = self.dense_gradient(problem, x, grad)
            grad_weight = parameter_gradient(problem, weight, dense)
        return grad_x, grad_weight

    def forward_into(
        self,
        problem: Problem,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        out: Tensor,
    ) -> None:
        """Convolve into a part of a larger map, by default with a copy.

        Args:
            problem: As for `forward`, as the other arguments are.
            x: As there.
            weight: As there.
            bias: As there.
            out: Where the result goes: the first channels of a map in the problem's
                memory format.
        """
        out.copy_(self.forward(problem, x, weight, bias))

    def backward_into(
        self,
        problem: Problem,
        x: Tensor | None,
        grad: Tensor,
        weight: Tensor,
        out: Tensor,
    ) -> Tensor | None:
        """Differentiate, the gradient to the input into a part of a larger map.

        Args:
            problem: As for `backward`, as the other arguments are.
            x: As there.
            grad: As there.
            weight: As there.
            out: Where the gradient to the input goes.

        Returns:
            As there, the gradient to the weight.
        """
        grad_x, grad_weight = self.backward(problem, x, grad, weight, True)
        assert grad_x is not None
        out.copy_(grad_x)
        return grad_weight

    def dense_gradient(self, problem: Problem, x: Tensor, grad: Tensor) -> Tensor:
        """Gradient to dense kernels, (C, kh, kw), of the accumulation dtype."""
        raise NotImplementedError

    def cost(self, problem: Problem, passes: Passes) -> float:
        """Estimate the time of passes computed in one call.

        Returns:
            Nanoseconds on one thread, of which only ratios matter; infinity where
            nobody has measured it.
        """
        return math.inf


def dense_kernel(problem: Problem, weight: Tensor) -> Tensor:
    """Dense kernels, clipped to the problem's size.

    Args:
        problem: The problem.
        weight: Kernels of shape (C, ., .), or the parameters of a sharing grid.

    Returns:
        Kernels of shape (C, kh, kw).
    """
    if problem.grid is not None:
        weight = expand_kernel(weight, problem.grid)
    rows, cols = problem.kernel
    top, left = (weight.shape[1] - rows) // 2, (weight.shape[2] - cols) // 2
    if not (top or left):
        return weight
    return weight[:, top : top + rows, left : left + cols]


def parameter_gradient(problem: Problem, weight: Tensor, grad: Tensor) -> Tensor:
    """Gradient to a weight, of the gradient to what `dense_kernel` made of it.

    Args:
        problem: The problem.
        weight: The weight.
        grad: Gradient to the dense kernels, (C, kh, kw).
    """
    rows, cols = weight.shape[1:]
    if problem.grid is not None:
        rows = cols = sum(problem.grid)
    top, left = (rows - grad.shape[1]) // 2, (cols - grad.shape[2]) // 2
    if top or left:
        grad = F.pad(grad, (left, left, top, top))
    return grad if problem.grid is None else box_sum(grad, problem.grid)


def cost_names(name: str, passes: Passes) -> list[str]:
    """Names of the costs of passes, each computed in a call of its own."""
    return [name + '_weight' * (each == 'weight') for each in passes]


def linear_cost(
    problem: Problem, costs: Sequence[float], terms: Sequence[float]
) -> float:
    """Expected time as a linear combination.

    Args:
        problem: The problem.
        costs: Nanoseconds of a call, then of each term of a plane.
        terms: What a plane takes.
    """
    call, *of_plane = costs
    time = sum(cost * term for cost, term in zip(of_plane, terms, strict=True))
    return call + problem.planes * time


class TorchBackend(Backend):
    """A backend of torch's operators, whose costs are known on the CPU up to float32.

    Attributes:
        costs: Nanoseconds as for `linear_cost`, under the backend's name for a forward
            pass and the input's gradient, with ``_weight`` for the weight's.
        terms: Of each cost, what tells the terms of a problem.
    """

    stands_in = True
    costs: ClassVar[Mapping[str, Sequence[float]]]
    terms: ClassVar[Mapping[str, Callable[[Problem], Sequence[float]]]]

    def cost(self, problem: Problem, passes: Passes) -> float:
        """Add the passes up; what an exporter records runs on nobody knows what."""
        unknown = problem.device != 'cpu' or problem.plain
        if unknown or problem.accumulation_dtype != torch.float32:
            return math.inf
        return sum(
            linear_cost(problem, self.costs[name], self.terms[name](problem))
            for name in cost_names(self.name, passes)
        )
