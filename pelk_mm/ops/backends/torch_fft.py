"""Depthwise convolution by torch's real Fourier transforms, on any device.

The cost does not depend on the kernel's size except through the padding, so this is
the way for large dense kernels where the compiled ones (`csrc/fft.cpp`, of the same
lengths) are missing. Computed in float32 or float64.
"""

import math

import torch
from torch import Tensor

from ..problem import Problem
from .base import TorchBackend, dense_kernel

# Conjugates are computed, not lazy: in a compiled graph torch does not look at the mark
# that a lazy one carries.

# Complex numbers held at a time for one of the operands: bounds the memory.
_CHUNK = 1 << 22

#: Nanoseconds on the CPU, as `benchmarks/selection.py` fits them.
COSTS: dict[str, tuple[float, ...]] = {
    'torch_fft': (80500, 234, 0.213),
    'torch_fft_weight': (73700, 220, 0.209),
}


def _terms(problem: Problem) -> tuple[float, ...]:
    batch = problem.batch
    down, along = problem.transform_lengths
    points = (2 + 1 / batch) * down * along
    return 2 + 1 / batch, points * math.log2(down * along)


#: Of each cost, what it is a linear combination of.
TERMS = {'torch_fft': _terms, 'torch_fft_weight': _terms}


class TorchFFT(TorchBackend):
    """Products of ``torch.fft.rfft2`` spectra, padded by half a kernel."""

    name = 'torch_fft'
    costs, terms = COSTS, TERMS

    def why_not(self, problem: Problem) -> str | None:
        """It serves everything, but neither symbolic sizes nor exports to ONNX."""
        if problem.plain and not all(isinstance(size, int) for size in problem.shape):
            return 'its transforms have fixed lengths and x has symbolic sizes'
        if torch.onnx.is_in_onnx_export():
            return 'exporters to ONNX cannot write its Fourier transforms'
        return None

    def forward(
        self, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Convolve with expanded kernels."""
        _, _, height, width = problem.shape
        rows, cols = problem.kernel
        size = problem.transform_lengths
        x, weight = (t.to(problem.accumulation_dtype) for t in (x, weight))
        weight = dense_kernel(problem, weight)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part in _chunks(problem):
            padded = weight.new_zeros(weight[part].shape[0], *size)
            padded[:, :rows, :cols] = weight[part]
            # The centre of the kernel goes to the origin.
            padded = padded.roll((-(rows // 2), -(cols // 2)), (-2, -1))
            spectrum = torch.fft.rfft2(x[:, part], s=size)
            spectrum *= torch.fft.rfft2(padded).conj_physical_()
            out[:, part] = torch.fft.irfft2(spectrum, s=size)[..., :height, :width]
        if bias is not None:
            out += bias.to(out.dtype)[:, None, None]
        return out.to(problem.dtype).contiguous(memory_format=problem.memory_format)

    def dense_gradient(self, problem: Problem, x: Tensor, grad: Tensor) -> Tensor:
        """Transform the product of the two maps' spectra back."""
        rows, cols = problem.kernel
        size = problem.transform_lengths
        x, grad = (t.to(problem.accumulation_dtype) for t in (x, grad))
        dense = x.new_empty(x.shape[1], rows, cols)
        for part in _chunks(problem):
            spectrum = torch.fft.rfft2(grad[:, part], s=size).conj_physical_()
            spectrum *= torch.fft.rfft2(x[:, part], s=size)
            lags = torch.fft.irfft2(spectrum.sum(0), s=size)
            dense[part] = lags.roll((rows // 2, cols // 2), (-2, -1))[:, :rows, :cols]
        return dense


def _chunks(problem: Problem) -> list[slice]:
    """Slices of the channels that are transformed at a time."""
    batch, channels = problem.shape[:2]
    rows, cols = problem.transform_lengths
    step = max(1, _CHUNK // max(1, batch * rows * (cols // 2 + 1)))
    return [slice(c, c + step) for c in range(0, channels, step)]
