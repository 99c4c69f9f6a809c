"""The backend on the triton kernels."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Hashable

import torch
from torch import Tensor

from ...problem import Problem, dtype_name
from ..base import Backend, Gradients, Passes
from . import availability, launch, variants
from .plan import SPLITS, Plan, Tile, tiles_of

#: Elements that offsets of 32 bits can tell apart.
_ELEMENTS = 2**31

#: Nanoseconds to start a kernel; cycles a nanosecond of all multiprocessors of an H100.
_LAUNCH, _CLOCKS = 5000.0, 132 * 1.83

#: Cell sizes down and along a kernel.
Taps = tuple[tuple[int, ...], tuple[int, ...]]


class Triton(Backend):
    """Sums of products with banded Toeplitz matrices, on tensor cores.

    Args:
        name: What it is called.
        variant: Which tile of `plan.tiles_of` to use, 0 the largest; None for the
            cheapest.
    """

    # Nobody has run it on a GPU: it is there for those who ask for it by name.
    stands_in = True

    def __init__(self, name: str, variant: int | None = None) -> None:
        self.name, self.variant = name, variant

    @staticmethod
    def state() -> Hashable:
        """What has failed so far."""
        return availability.failures()

    def why_not(self, problem: Problem) -> str | None:
        """It computes float32, bfloat16 and float16 on NVIDIA GPUs."""
        if problem.plain:
            return (
                "torch's own operators alone are wanted, by pelk_mm.ops.plain, "
                'PELK_MM_PLAIN or an export to ONNX'
            )
        if problem.dtype not in SPLITS:
            known = ', '.join(map(dtype_name, SPLITS))
            return f'it computes {known}, and x is {dtype_name(problem.dtype)}'
        reason = availability.why_not(problem.device)
        if reason is None and 0 not in problem.shape:
            plan, _ = self._cheapest(problem, problem.cells)
            if plan.scratch(1, 1) >= _ELEMENTS:
                return 'one of the maps is too large for offsets of 32 bits'
        return reason

    def forward(
        self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Convolve, the bias added on the way out."""
        out = _empty(problem, x)
        self.forward_into(problem, x, weight, bias, out)
        return out

    def forward_into(
        self,
        problem: Problem,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        out: Tensor,
    ) -> None:
        """Write the tiles of the result where it goes, whatever its strides."""
        plan, tile = self.plan(problem, weight)
        x, out = (launch.oriented(plan, maps) for maps in (x, out))
        with _device_of(x):
            for images, channels in plan.chunks(tile):
                planes = launch.Planes(plan, x[images, channels], True, 0)
                rows = launch.lay_out_weights(plan, weight[channels], tile)
                own = None if bias is None else bias[channels]
                launch.convolve(plan, tile, planes, rows, own, out[images, channels])

    def backward(
        self,
        problem: Problem,
        x: Tensor | None,
        grad: Tensor,
        weight: Tensor,
        needs_x: bool,
    ) -> Gradients:
        """Differentiate; both gradients share the planes of the output's."""
        grad_x = _empty(problem, grad) if needs_x else None
        return grad_x, self.backward_into(problem, x, grad, weight, grad_x)

    def backward_into(
        self,
        problem: Problem,
        x: Tensor | None,
        grad: Tensor,
        weight: Tensor,
        out: Tensor | None,
    ) -> Tensor | None:
        """Write the gradient to the input, if it is wanted; return the weights'."""
        taps = _taps(problem, weight)
        plan, tile = self.plan(problem, weight)
        adjoint = _make_plan(problem, (taps[0][::-1], taps[1][::-1]), plan.transposed)
        flipped = weight.flip(-2, -1)
        parts: dict[int, Tensor] = {}
        with _device_of(grad):
            for images, channels in plan.chunks(tile):
                own = launch.oriented(plan, grad)[images, channels]
                planes = launch.Planes(plan, own, True, 0)
                if out is not None:
                    rows = launch.lay_out_weights(adjoint, flipped[channels], tile)
                    to = launch.oriented(plan, out)[images, channels]
                    launch.convolve(adjoint, tile, planes, rows, None, to)
                if x is not None:
                    own = launch.oriented(plan, x)[images, channels]
                    seen = launch.Planes(plan, own, False, plan.side)
                    part = parts.setdefault(
                        images.start, grad.new_zeros(weight.shape, dtype=torch.float32)
                    )
                    to = part.transpose(1, 2) if plan.transposed else part
                    launch.weight_gradient(plan, planes, seen, to[channels])
        return functools.reduce(torch.add, parts.values()) if parts else None

    def plan(
        self, problem: Problem, weight: Tensor, capability: int | None = None
    ) -> tuple[Plan, Tile]:
        """The cheapest way of computing a problem with weights of some shape.

        Args:
            problem: The problem.
            weight: The weights, of which the shape counts.
            capability: First number of a GPU's compute capability; None for that of
                the GPUs here.
        """
        return self._cheapest(problem, _taps(problem, weight), capability)

    def _cheapest(
        self, problem: Problem, taps: Taps, capability: int | None = None
    ) -> tuple[Plan, Tile]:
        if capability is None:
            capability = availability.capability()
        return _cheapest(problem, taps, capability, self.variant)

    def cost(self, problem: Problem, passes: Passes) -> float:
        """Nobody has measured it; the interpreter takes a million times what counts."""
        if problem.device != 'cpu':
            return math.inf
        return 1e6 * self.counted(problem, passes)

    def counted(self, problem: Problem, passes: Passes) -> float:
        """Nanoseconds on an H100 by the counts of `benchmarks/gpu_kernels.py`.

        A bound from below, to start a choice from.
        """
        plan, tile = self._cheapest(problem, problem.cells)
        clocks = plan.pack_clocks(True)
        for each in passes:
            if each == 'weight':
                rows = variants.term_rows(plan)
                clocks += plan.pack_clocks(False)
                clocks += plan.weight_clocks(rows, variants.LAGS, variants.DEPTH)
            else:
                clocks += plan.clocks(tile)
        # The GPU computes while the next kernels are being started.
        launches = (2 + 2 * len(passes)) * len(plan.chunks(tile))
        return _LAUNCH + max(launches * _LAUNCH, clocks / _CLOCKS)


def _taps(problem: Problem, weight: Tensor) -> Taps:
    """Cells of the whole kernel, which the problem's may be clipped of."""
    if problem.grid is not None:
        return problem.cells
    return (1,) * weight.shape[1], (1,) * weight.shape[2]


def _empty(problem: Problem, like: Tensor) -> Tensor:
    return like.new_empty(problem.shape).contiguous(memory_format=problem.memory_format)


@functools.lru_cache(maxsize=1024)
def _make_plan(
    problem: Problem,
    taps: Taps,
    transposed: bool,
) -> Plan:
    return Plan(problem, taps, transposed)


@functools.lru_cache(maxsize=1024)
def _cheapest(
    problem: Problem, taps: Taps, capability: int, variant: int | None
) -> tuple[Plan, Tile]:
    plans = [_make_plan(problem, taps, transposed) for transposed in (False, True)]
    tiles = tiles_of(capability)
    if variant is not None:
        tiles = tiles[variant : variant + 1]
    return min(
        ((plan, tile) for plan in plans for tile in tiles),
        key=lambda option: option[0].clocks(option[1]),
    )


def _device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """Launch on the device that a tensor is on."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


BACKENDS: tuple[Backend, ...] = (Triton('triton'),)
