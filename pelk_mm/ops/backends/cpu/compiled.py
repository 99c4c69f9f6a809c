"""Backends on the compiled CPU kernels (`pelk_mm/ops/csrc`)."""

from collections.abc import Hashable

from torch import Tensor

from ...problem import Problem, dtype_name
from ..base import (
    Backend,
    Gradients,
    Passes,
    cost_names,
    dense_kernel,
    parameter_gradient,
)
from . import costs, kernels, library


class CompiledBackend(Backend):
    """What the backends on the library have in common."""

    @staticmethod
    def state() -> Hashable:
        """Instruction set in use, which `PELK_MM_ISA` may change at any time."""
        return library.instruction_set()

    def why_not(self, problem: Problem) -> str | None:
        """The kernels run on the CPU, up to float32, where they were built."""
        if problem.plain:
            return (
                "torch's own operators alone are wanted, by pelk_mm.ops.plain, "
                'PELK_MM_PLAIN or an export to ONNX'
            )
        if problem.device != 'cpu':
            return f'it runs on the CPU and x is on {problem.device}'
        if problem.dtype not in library.DTYPES:
            known = ', '.join(map(dtype_name, library.DTYPES))
            return f'it computes {known}, and x is {dtype_name(problem.dtype)}'
        if library.instruction_set() is None:
            return (
                'it needs the compiled kernels, which were not built or are turned off '
                f'by {library.ENVIRONMENT_VARIABLE}'
            )
        return None


class Direct(CompiledBackend):
    """Direct sums over planes, of dense kernels."""

    name = 'direct'

    def forward(
        self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Convolve with expanded kernels."""
        out = kernels.convolve(x, dense_kernel(problem, weight), bias)
        return kernels.in_format(out, problem.memory_format)

    def dense_gradient(self, problem: Problem, x: Tensor, grad: Tensor) -> Tensor:
        """Correlate the two maps, plane by plane."""
        return kernels.weight_grad(x, grad, problem.kernel)

    def cost(self, problem: Problem, passes: Passes) -> float:
        """Sum the passes, each with two changes of layout."""
        names = cost_names('direct', passes)
        return costs.expected(problem, names, 2 * len(passes), len(passes))


class Pixels(CompiledBackend):
    """Direct sums over vectors of channels, of dense kernels, in either layout."""

    name = 'pixels'

    def forward(
        self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Convolve with expanded kernels, in float32."""
        out = kernels.convolve_pixels(x.float(), dense_kernel(problem, weight), bias)
        return kernels.in_format(out.to(problem.dtype), problem.memory_format)

    def dense_gradient(self, problem: Problem, x: Tensor, grad: Tensor) -> Tensor:
        """Correlate the two maps, in float32."""
        return kernels.weight_grad_pixels(x.float(), grad.float(), problem.kernel)

    def cost(self, problem: Problem, passes: Passes) -> float:
        """Sum the passes."""
        names = cost_names('pixels' if problem.channels_last else 'blocks', passes)
        return costs.expected(problem, names, 0, len(passes))


class Fourier(CompiledBackend):
    """Fourier transforms, plane by plane in the cache.

    Args:
        name: 'fft' for transforms along both axes, 'column_fft' for transforms down
            and box sums along the rows, of which a sharing grid needs few.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def _lengths(self, problem: Problem) -> tuple[int, int]:
        down, along = problem.transform_lengths
        return down, along if self.name == 'fft' else 0

    def forward(
        self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Convolve with dense kernels or with a sharing grid's parameters."""
        out = self._planes(problem, x, weight, bias)
        return kernels.in_format(out, problem.memory_format)

    def forward_into(
        self,
        problem: Problem,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        out: Tensor,
    ) -> None:
        """Change the layout on the way to where the result goes."""
        kernels.copy_into(self._planes(problem, x, weight, bias), out)

    def _planes(
        self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        weight = _own_parameters(problem, weight)
        lengths = self._lengths(problem)
        return kernels.fourier_convolve(x, weight, bias, *problem.cells, lengths)

    def backward(
        self,
        problem: Problem,
        x: Tensor | None,
        grad: Tensor,
        weight: Tensor,
        needs_x: bool,
    ) -> Gradients:
        """Differentiate; both gradients share the transform of the output's."""
        grad_x, grad_weight = self._gradients(problem, x, grad, weight, needs_x)
        if grad_x is not None:
            grad_x = kernels.in_format(grad_x, problem.memory_format)
        return grad_x, grad_weight

    def backward_into(
        self,
        problem: Problem,
        x: Tensor | None,
        grad: Tensor,
        weight: Tensor,
        out: Tensor,
    ) -> Tensor | None:
        """Change the layout on the way to where the input's gradient goes."""
        grad_x, grad_weight = self._gradients(problem, x, grad, weight, True)
        assert grad_x is not None
        kernels.copy_into(grad_x, out)
        return grad_weight

    def _gradients(
        self,
        problem: Problem,
        x: Tensor | None,
        grad: Tensor,
        weight: Tensor,
        needs_x: bool,
    ) -> Gradients:
        grad_x, grad_weight = kernels.fourier_gradients(
            x,
            grad,
            _own_parameters(problem, weight) if needs_x else None,
            *problem.cells,
            self._lengths(problem),
        )
        if grad_weight is not None and problem.grid is None:
            grad_weight = parameter_gradient(problem, weight, grad_weight)
        return grad_x, grad_weight

    def cost(self, problem: Problem, passes: Passes) -> float:
        """Tell the time of one pass or of both gradients."""
        suffix = '_both' if len(passes) > 1 else '_weight' * (passes[0] == 'weight')
        # Input and result of every pass, of which the gradients share one.
        return costs.expected(problem, [self.name + suffix], 1 + len(passes), 0)


def _own_parameters(problem: Problem, weight: Tensor) -> Tensor:
    """Parameters as the library takes them: those of a grid, or clipped kernels."""
    return weight if problem.grid is not None else dense_kernel(problem, weight)


BACKENDS: tuple[Backend, ...] = (
    Direct(),
    Pixels(),
    Fourier('fft'),
    Fourier('column_fft'),
)
