"""No file or argument is executed: the linter forbids it, arguments are in order."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Calls that run code of a file or of a text, by what they need imported.
FORBIDDEN = {
    'exec(text)': 'S102',
    'eval(text)': 'S307',
    'pickle.load(file)': 'TID251',
    'pickle.Unpickler(file)': 'TID251',
    'dill.loads(text)': 'TID251',
    'joblib.load(file)': 'TID251',
    'marshal.loads(text)': 'TID251',
    'shelve.open(file)': 'TID251',
    'pandas.read_pickle(file)': 'TID251',
    'yaml.load(file, yaml.SafeLoader)': 'TID251',
    'yaml.load_all(file, yaml.Loader)': 'TID251',
    'yaml.unsafe_load(file)': 'TID251',
    'torch.load(file, weights_only=True)': 'TID251',
    'torch.jit.load(file)': 'TID251',
    'torch.hub.load(file, "model")': 'TID251',
    'torch.export.load(file)': 'TID251',
    'runpy.run_path(file)': 'TID251',
    'os.system(text)': 'TID251',
    'os.popen(text)': 'TID251',
    'subprocess.run(text, shell=True)': 'S602',
    'tarfile.open(file).extractall()': 'S202',
}

#: Arguments that make a safe function unsafe, and their safe values.
ARGUMENTS = {'allow_pickle': False, 'weights_only': True, 'shell': False}
FOLDERS = ('pelk_mm', 'tools', 'demo', 'benchmarks', 'configs')


def test_linter_forbids_what_runs_code(tmp_path):
    modules = sorted({call.split('.')[0] for call in FORBIDDEN if '.' in call})
    lines = [f'import {name}' for name in modules] + list(FORBIDDEN)
    command = [sys.executable, '-m', 'ruff', 'check', '--output-format', 'json']
    command += ['--no-cache', '--stdin-filename', str(ROOT / 'pelk_mm' / 'made_up.py')]
    done = subprocess.run(
        [*command, '-'],
        input='\n'.join(lines),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
    )
    found = {}
    for each in json.loads(done.stdout):
        line = lines[each['location']['row'] - 1]
        found.setdefault(line, set()).add(each['code'])
    for call, rule in FORBIDDEN.items():
        # Of modules that are forbidden as a whole, the import is found.
        imported = f'import {call.split(".")[0]}'
        assert rule in found.get(call, set()) | found.get(imported, set()), call


def unsafe_arguments(text):
    """Lines in which an argument has not the one safe value."""
    return [
        keyword.value.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in ARGUMENTS
        and getattr(keyword.value, 'value', None) is not ARGUMENTS[keyword.arg]
    ]


@pytest.mark.parametrize(
    ('text', 'lines'),
    [
        ('np.load(a, allow_pickle=False)', []),
        ('\nnp.load(a, allow_pickle=True)', [2]),
        ('load(a, weights_only=chosen)', [1]),
        ('load(a, weights_only=False)', [1]),
        ('run(a, shell=True)', [1]),
    ],
)
def test_unsafe_arguments_are_found(text, lines):
    assert unsafe_arguments(text) == lines


def test_arguments_are_safe():
    files = [ROOT / 'pelk_mm_cli.py', ROOT / 'setup.py']
    files += [path for name in FOLDERS for path in (ROOT / name).rglob('*.py')]
    assert len(files) > 100
    found = {
        f'{path.relative_to(ROOT)}:{line}'
        for path in files
        for line in unsafe_arguments(path.read_text())
    }
    assert found == set()
