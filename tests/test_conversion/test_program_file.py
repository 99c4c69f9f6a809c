"""Programs of torch.export are read without running what their files carry."""

import contextlib
import io
import json
import zipfile

import pytest
import torch
from torch import nn

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.conversion.program_file import is_plain_expression, load_program


class Calls:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.fixture(scope='module')
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp('program') / 'a.pt2'
    axis = torch.export.Dim('n', min=2, max=64)
    exported = torch.export.export(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
        (torch.zeros(3, 4),),
        dynamic_shapes=({0: axis},),
    )
    torch.export.save(exported, path)
    return path


def rewritten(source, path, change, added=()):
    """Copies an archive, each record changed by a function of its name and bytes."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, 'w') as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
        folder = old.namelist()[0].partition('/')[0]
        for name in added:
            new.writestr(f'{folder}/{name}', b'x')
    return path


def test_sound_program(program):
    module = load_program(program).module()
    assert module(torch.zeros(5, 4)).shape == (5, 2)


def replace_sizes(text):
    def change(name, content):
        if b'expr_str' not in content:
            return content
        document = json.loads(content)
        nodes = [document]
        while nodes:
            node = nodes.pop()
            if isinstance(node, dict):
                if 'expr_str' in node:
                    node['expr_str'] = text
                nodes += node.values()
            elif isinstance(node, list):
                nodes += node
        return json.dumps(document).encode()

    return change


def test_size_that_is_code(program, tmp_path):
    marker = tmp_path / 'marker'
    code = f'open({str(marker)!r}, "w")'
    path = rewritten(program, tmp_path / 'b.pt2', replace_sizes(code))
    assert path.read_bytes() != program.read_bytes()
    with pytest.raises(CheckpointError, match='which is no arithmetic'):
        load_program(path)
    assert not marker.exists()


def test_pickle_in_place_of_the_inputs(program, tmp_path):
    marker = tmp_path / 'marker'
    payload = io.BytesIO()
    torch.save(Calls(marker), payload)

    def change(name, content):
        inputs = 'sample_inputs' in name or 'example_inputs' in name
        return payload.getvalue() if inputs else content

    path = rewritten(program, tmp_path / 'b.pt2', change)
    with pytest.raises(Exception, match=r'(?i)weights|unpickl'):
        load_program(path)
    assert not marker.exists()
    # What there is to guard against; torch then stumbles over what it has read.
    with contextlib.suppress(TypeError, AssertionError):
        torch.export.load(path)
    assert marker.exists()


@pytest.mark.parametrize(
    'name', ['data/constants/custom_obj_0', 'data/aotinductor/m/x.so', 'data/lib.so']
)
def test_objects_and_libraries(program, tmp_path, name):
    path = rewritten(program, tmp_path / 'b.pt2', lambda _, content: content, [name])
    with pytest.raises(CheckpointError, match='which torch would run'):
        load_program(path)


@pytest.mark.parametrize(
    'text',
    [
        "Symbol('s0', positive=True, integer=True)",
        "Mul(Integer(2), Pow(Symbol('s0'), Integer(2)))",
        's0',
        '2*s0 + 1',
        'Max(1, s0//2)',
        's0**2',
        '-s0',
        'Eq(s0, 3)',
        'u0 >= 2',
        '64',
    ],
)
def test_arithmetic(text):
    assert is_plain_expression(text)


@pytest.mark.parametrize(
    'text',
    [
        '__import__("os")',
        'open("x")',
        's0.__class__',
        'Max(1, s0).func',
        '9**9**9',
        '9**s0',
        '[1 for _ in s0]',
        'lambda: 1',
        '"text"',
        's0[0]',
        '9' * 99,
        '(' * 9999,
        'eval("1")',
        'Max(x=1)',
        "Max('a')",
        "Symbol('a b')",
        "Symbol('a', real=s0)",
        "'a' * 9",
        'Pow(9, Pow(9, 9))',
        'PowByNatural(9, 999)',
        3,
        None,
    ],
)
def test_what_is_no_arithmetic(text):
    assert not is_plain_expression(text)
