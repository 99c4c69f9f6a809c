"""Programs that would run code when torch loads them."""

import json
import os
import zipfile
from contextlib import suppress

import pytest
import torch

from pelk_mm.conversion.program_file import load_program, require_arithmetic


class Sum(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, images):
        return (images * self.weight).sum(0)


@pytest.fixture(scope='module')
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp('program') / 'a.pt2'
    sizes = dict(images={0: torch.export.Dim('n', min=2, max=9)})
    inputs = (torch.randn(4, 3),)
    torch.export.save(torch.export.export(Sum(), inputs, dynamic_shapes=sizes), path)
    return path


def rewrite(source, path, edit):
    """Copy an archive, each file's name and contents changed by a function."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, 'w') as new:
        for name in old.namelist():
            for changed, contents in edit(name, old.read(name)):
                new.writestr(changed, contents)


def test_program_is_loaded_with_weights_and_open_sizes(program, monkeypatch):
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)
    loaded = load_program(program)
    images = torch.randn(7, 3)
    assert torch.equal(loaded.module()(images), images.sum(0))
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


class Call:
    """Pickles into a call that makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_pickles_in_place_of_weights_run_nothing(program, tmp_path):
    torch.save(dict(weight=Call(tmp_path / 'made')), tmp_path / 'evil.pt')
    evil = (tmp_path / 'evil.pt').read_bytes()

    def edit(name, contents):
        plain = name.endswith(('.json', 'version', 'byteorder', 'format'))
        yield name, contents if plain or '.' not in name else evil

    rewrite(program, tmp_path / 'b.pt2', edit)
    with suppress(Exception):  # torch refuses it, or looks for other files
        load_program(tmp_path / 'b.pt2')
    assert not (tmp_path / 'made').exists()


def replaced(node, key, value):
    """JSON with the strings under a key replaced."""
    if isinstance(node, list):
        return [replaced(entry, key, value) for entry in node]
    if isinstance(node, dict):
        return {
            name: value
            if name == key and isinstance(old, str)
            else replaced(old, key, value)
            for name, old in node.items()
        }
    return node


@pytest.mark.parametrize('key', ['expr_str', 'name'])
def test_python_in_place_of_sizes_and_names_runs_nothing(program, tmp_path, key):
    code = f'__import__("os").mkdir({str(tmp_path / "made")!r})'
    found = []

    def edit(name, contents):
        if name.endswith('.json'):
            found.append(f'"{key}"' in contents.decode())
            contents = json.dumps(replaced(json.loads(contents), key, code))
        yield name, contents

    rewrite(program, tmp_path / 'b.pt2', edit)
    assert any(found)
    with pytest.raises(ValueError, match='__import__.*could run code'):
        load_program(tmp_path / 'b.pt2')
    assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('a/data/aotinductor/model/a.wrapper.so', 'compiled code'),
        ('a/data/constants/custom_obj_0', 'pickled object'),
        ('a/data/constants/opaque_obj_0', 'pickled object'),
    ],
)
def test_archive_with_more_than_a_graph(program, tmp_path, name, message):
    rewrite(program, tmp_path / 'b.pt2', lambda *entry: [entry])
    with zipfile.ZipFile(tmp_path / 'b.pt2', 'a') as archive:
        archive.writestr(name, b'')
    with pytest.raises(ValueError, match=message):
        load_program(tmp_path / 'b.pt2')


@pytest.mark.parametrize(
    'text', ['2*s0 + 1', 'Max(1, s0//2)', 's0 >= 2', "Symbol('n_1', positive=True)"]
)
def test_arithmetic_of_sizes(text):
    require_arithmetic(text)


@pytest.mark.parametrize(
    'text',
    ['s0.a', 's0[0]', '[1]', 'lambda: 0', '"a.b"', 'a b', '', '__x', 'eval(s0)']
    + ['open(n)', 'getattr(s0, "a")()', 'f(1)(2)', 'print', '(' * 9999],
)
def test_more_than_arithmetic(text):
    with pytest.raises(ValueError, match='more than arithmetic'):
        require_arithmetic(text)
