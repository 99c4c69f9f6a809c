"""The switch that leaves this package's operators out."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pelk_mm.environment import read_switch

ENVIRONMENT_VARIABLE = 'PELK_MM_PLAIN'


# Read once: code that torch.compile made would not notice that it changes.
_ASKED = read_switch(ENVIRONMENT_VARIABLE, "leaves pelk_mm's own operators out")


class _Switch(threading.local):
    """What each thread has chosen."""

    def __init__(self) -> None:
        # In the instance, as torch.compile does not watch class attributes.
        self.on = _ASKED


_switch = _Switch()


@contextmanager
def plain(enabled: bool = True) -> Iterator[None]:
    """Compute with torch's own operators alone, in this thread.

    The operators of `pelk_mm.ops` then call ``torch.nn.functional.conv2d`` with dense
    kernels, so that whatever is traced, scripted or exported has no operator of this
    package in it and runs where the package is not installed: `torch.export`,
    AOTInductor, `torch.jit.trace`, `torch.onnx.export` of an exported program,
    OpenVINO's converter. Only the tracing has to be inside. Sizes of the images may be
    dynamic; they stay so for maps smaller than a kernel too.

    Values and gradients are the same up to rounding, in training too, but slower on
    the CPU; sums are kept as torch's convolution keeps them, and the memory layout of
    the output is the one that it gives. `torch.compile` compiles anew for the other
    state. A backward pass needs no switch, as it follows what the forward pass
    recorded.

    Setting ``PELK_MM_PLAIN=1`` in the environment before `pelk_mm.ops` is first
    imported does the same for all threads. The exporters that `torch.onnx.export`
    itself starts need neither.

    Args:
        enabled: Whether to leave the operators out; False brings them back inside of
            an outer context, or where the environment leaves them out.

    Examples:
        >>> with plain():
        ...     program = torch.export.export(model, (images,))
    """
    before = _switch.on
    _switch.on = enabled
    try:
        yield
    finally:
        _switch.on = before


def is_plain() -> bool:
    """Whether torch's own operators alone may run, as an export to ONNX asks too."""
    return _switch.on or torch.onnx.is_in_onnx_export()
