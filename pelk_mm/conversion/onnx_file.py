"""From an exported program to a file of ONNX that is held to torch's values."""

import importlib.util
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pelk_mm.checkpoints.files import CheckpointError, first_line, write_output
from pelk_mm.install import install_command

#: Largest difference from torch's values, relative to the largest of them.
TOLERANCE = 1e-4
#: The same for weights and sums in float16, whose step is 1e-3 of a value.
HALF_TOLERANCE = 3e-2
#: Operators of ONNX by the version that all their runtimes know, and torch writes.
OPSET = 18
#: What one file can hold; ONNX is a protocol buffer.
MAX_BYTES = 2**31 - 2**20


class Check(NamedTuple):
    """How far onnxruntime is from torch on random inputs of a size.

    Attributes:
        shapes: Shape of each input.
        absolute: Largest difference of an output.
        relative: The same, of an output whose largest value is 1.
    """

    shapes: tuple[tuple[int, ...], ...]
    absolute: float
    relative: float


def require_packages() -> None:
    """Raise a `CheckpointError` unless what an export needs is installed."""
    missing = [
        name
        for name in ('onnx', 'onnxscript', 'onnxruntime')
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise CheckpointError(
            f'{" and ".join(missing)} cannot be found: run '
            f'`{install_command("export")}`'
        )


def check_onnx_path(path: Path, force: bool) -> None:
    """Raise a `CheckpointError` unless a file of ONNX may be written there."""
    fault = None
    folder = path.absolute().parent
    if path.suffix != '.onnx':
        fault = 'does not end in .onnx; choose such a name'
    elif path.is_dir() or not folder.is_dir():
        fault = 'is not a file in an existing folder; choose another destination'
    elif path.exists() and not force:
        fault = 'exists and is kept; choose another name or give --force'
    elif not os.access(folder, os.W_OK):
        fault = f'cannot be written: no write access to {folder}'
    if fault is not None:
        raise CheckpointError(f'{path} {fault}')


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what exporters tell of themselves; errors are raised in any case."""
    # By its name: torch and onnxscript log that they look for torchvision.
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def to_onnx(
    program: torch.export.ExportedProgram,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Any:
    """Write a program in ONNX's operators.

    Args:
        program: With torch's operators alone.
        input_names: Names of the graph's inputs; torch's own if None.
        output_names: The same of its outputs.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        CheckpointError: If the exporter cannot write an operator.
    """
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                input_names=input_names,
                output_names=output_names,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            assert exported is not None  # where no file was asked for
            return exported.model_proto
    except Exception as error:  # whatever the exporter's passes raise
        raise CheckpointError(
            f'the program cannot be written as ONNX: {_reason(error)}'
        ) from error


def _reason(error: BaseException) -> str:
    """The sentence of an exporter's error that says what went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f'{type(error).__name__}: {first_line(error)}'


def to_half(proto: Any) -> Any:
    """Convert weights and what is computed to float16; inputs and outputs stay float32.

    Raises:
        CheckpointError: If onnxruntime's converter cannot.
    """
    from onnxruntime.transformers import float16

    try:
        with _quiet():
            return float16.convert_float_to_float16(proto, keep_io_types=True)
    except Exception as error:  # whatever it raises at a graph that it does not know
        raise CheckpointError(
            f'onnxruntime cannot convert it to float16: {_reason(error)}'
        ) from error


def name_open_sizes(proto: Any, names: Mapping[int, str]) -> None:
    """Name the open axes of a model's first input, wherever their sizes occur.

    Args:
        proto: An ``onnx.ModelProto``; torch numbers the sizes in it (``s34``).
        names: The name of each axis.
    """
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    known = {dims[axis].dim_param: name for axis, name in names.items()}
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField('dim_param'):
                dim.dim_param = re.sub(
                    r'\w+', lambda match: known.get(match[0], match[0]), dim.dim_param
                )


def set_notes(proto: Any, notes: Mapping[str, Any]) -> None:
    """Put notes into a model's ``metadata_props``, each value as JSON."""
    for name, value in notes.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, json.dumps(value)


def write_verified(
    proto: Any,
    path: Path,
    cases: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
    tolerance: float,
) -> Iterator[Check]:
    """Write a model, hold it to torch with onnxruntime, and only then give it its name.

    Args:
        proto: An ``onnx.ModelProto``.
        path: The file.
        cases: Inputs, and the outputs that torch has for them.
        tolerance: Largest difference, relative to an output's largest value.

    Yields:
        How far the model is from each case. The file appears with the last of them.

    Raises:
        CheckpointError: If it cannot be written, onnxruntime cannot run it, or it
            differs by more; nothing is left then.
    """
    if proto.ByteSize() > MAX_BYTES:
        raise CheckpointError(
            f'{path} would take {proto.ByteSize() / 1e9:.2f} GB, more than the 2 GB '
            'that a file of ONNX can hold; export it with --fp16'
        )
    with write_output(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        session = _session(temporary, path)
        for inputs, outputs in cases:
            yield _compare(session, path, inputs, outputs, tolerance)


def _session(file: Path, path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: the fast kernels warn of what they skip
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(
            str(file), options, providers=['CPUExecutionProvider']
        )
    except Exception as error:  # of classes of its own
        raise CheckpointError(
            f'onnxruntime cannot load {path}: {_reason(error)}'
        ) from error


def _compare(
    session: Any,
    path: Path,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    tolerance: float,
) -> Check:
    shapes = tuple(tuple(tensor.shape) for tensor in inputs)
    shown = ', '.join(' x '.join(map(str, shape)) for shape in shapes)
    names = [entry.name for entry in session.get_inputs()]
    feed = {n: tensor.numpy() for n, tensor in zip(names, inputs, strict=True)}
    try:
        ours = session.run(None, feed)
    except Exception as error:  # of classes of its own
        raise CheckpointError(
            f'onnxruntime cannot run {path} on {shown}: {_reason(error)}'
        ) from error
    absolute = relative = 0.0
    for got, tensor in zip(ours, outputs, strict=True):
        wanted = tensor.numpy()
        if got.shape != wanted.shape:
            raise CheckpointError(
                f'{path} gives {got.shape} for an input of {shown}, not {wanted.shape}'
            )
        if not np.isfinite(wanted).all():
            raise CheckpointError(
                f"torch's own output for a random input of {shown} is not finite; "
                'the checkpoint may hold NaN'
            )
        difference = float(np.abs(got.astype(np.float32) - wanted).max())
        # Not max(): it drops NaN.
        largest = float(np.abs(wanted).max()) or 1.0
        share = difference / largest
        if not share <= tolerance:
            raise CheckpointError(
                f'{path} differs from torch by {difference:.1e}, {share:.1e} of the '
                f'largest value, for an input of {shown}; the limit is {tolerance:.0e}'
            )
        absolute, relative = max(absolute, difference), max(relative, share)
    return Check(shapes, absolute, relative)
