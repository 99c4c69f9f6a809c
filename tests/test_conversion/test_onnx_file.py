"""Files of ONNX appear only after onnxruntime has reproduced torch's values."""

import pytest
import torch

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.conversion import onnx_file
from pelk_mm.conversion.onnx_file import (
    check_onnx_path,
    name_open_sizes,
    require_packages,
    set_notes,
    to_half,
    write_verified,
)


@pytest.fixture(scope='module')
def twice():
    """A model that doubles (N, 2) numbers."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node('Mul', ['x', 'two'], ['y'])],
        'twice',
        [helper.make_tensor_value_info('x', kind, ['n', 2])],
        [helper.make_tensor_value_info('y', kind, ['n', 2])],
        [helper.make_tensor('two', kind, [], [2.0])],
    )
    opset = [helper.make_opsetid('', onnx_file.OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


X = torch.tensor([[1.0, -3.0]])


def test_reports_each_case(twice, tmp_path):
    cases = [([X], [2 * X]), ([X[[0, 0]]], [2 * X[[0, 0]] + 6e-5])]
    checks = write_verified(twice, tmp_path / 'a.onnx', cases, 1e-4)
    first = next(checks)
    assert first.shapes == ((1, 2),)
    assert (first.absolute, first.relative) == (0, 0)
    assert not (tmp_path / 'a.onnx').exists()
    (second,) = checks
    assert second.shapes == ((2, 2),)
    assert second.absolute == pytest.approx(6e-5, rel=0.05)
    assert second.relative == pytest.approx(1e-5, rel=0.05)
    assert [path.name for path in tmp_path.iterdir()] == ['a.onnx']


@pytest.mark.parametrize(
    ('given', 'wanted', 'message'),
    [
        (
            X,
            2 * X + 0.1,
            'differs from torch by 1.0e-01, 1.7e-02 of the largest',
        ),
        (X, 2 * X * torch.nan, "torch's own output .* is not finite"),
        (X * torch.nan, 2 * X, 'differs from torch by nan'),
        (X, X[:, :1], r'gives \(1, 2\) for an input of 1 x 2, not \(1, 1\)'),
        (X[:, :1], X, 'onnxruntime cannot run .*a.onnx on 1 x 1'),
    ],
)
def test_nothing_is_left_of_a_wrong_one(twice, tmp_path, given, wanted, message):
    cases = [([X], [2 * X]), ([given], [wanted])]
    with pytest.raises(CheckpointError, match=message) as error:
        list(write_verified(twice, tmp_path / 'a.onnx', cases, 1e-4))
    assert '\n' not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_half_keeps_inputs_and_outputs(twice, tmp_path):
    half = to_half(type(twice).FromString(twice.SerializeToString()))
    assert [t.data_type for t in half.graph.initializer] == [10]  # FLOAT16
    x = torch.randn(4, 2)
    list(write_verified(half, tmp_path / 'a.onnx', [([x], [2 * x])], 1e-3))


def test_open_sizes_are_named(twice):
    proto = type(twice).FromString(twice.SerializeToString())
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = '2*n + nn'
    name_open_sizes(proto, {0: 'batch'})
    shapes = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (proto.graph.input[0], proto.graph.output[0])
    ]
    assert shapes == [['batch', 2], ['2*batch + nn', 2]]


def test_notes(twice):
    proto = type(twice).FromString(twice.SerializeToString())
    set_notes(proto, dict(mean=[1.5], classes=['käse']))
    notes = {entry.key: entry.value for entry in proto.metadata_props}
    assert notes == {'mean': '[1.5]', 'classes': '["k\\u00e4se"]'}


def test_too_large_for_a_file(twice, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, 'MAX_BYTES', 10)
    with pytest.raises(CheckpointError, match='more than the 2 GB .* --fp16'):
        list(write_verified(twice, tmp_path / 'a.onnx', [], 1e-4))


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('a.pth', 'does not end in .onnx'),
        ('none/a.onnx', 'is not a file in an existing folder'),
        ('folder.onnx', 'is not a file in an existing folder'),
        ('old.onnx', 'exists and is kept; choose another name or give --force'),
    ],
)
def test_wrong_destinations(tmp_path, name, message):
    (tmp_path / 'folder.onnx').mkdir()
    (tmp_path / 'old.onnx').touch()
    with pytest.raises(CheckpointError, match=message):
        check_onnx_path(tmp_path / name, force=False)


def test_folder_without_access(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file.os, 'access', lambda *_: False)  # root has it all
    with pytest.raises(CheckpointError, match='no write access to'):
        check_onnx_path(tmp_path / 'a.onnx', force=False)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(
        onnx_file.importlib.util, 'find_spec', lambda name: name == 'onnx' or None
    )
    with pytest.raises(CheckpointError) as error:
        require_packages()
    assert str(error.value).startswith('onnxscript and onnxruntime cannot be found: ')
    assert 'pip install' in str(error.value)
