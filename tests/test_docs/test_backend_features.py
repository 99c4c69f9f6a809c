"""The tables of docs/performance.md that say what runs where."""

import importlib
from pathlib import Path

import pytest
import torch

from pelk_mm.ops import choose
from pelk_mm.ops.backends.torch_conv import TorchConv

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def features(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    return importlib.import_module('backend_features')


def rows_of(text):
    """Cells of all tables by backend and column."""
    found, columns = {}, []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if cells[0] == 'backend':
            columns = cells
        elif cells[0].startswith('`'):
            for column, cell in zip(columns[1:], cells[1:], strict=True):
                found[cells[0].strip('`'), column] = cell
    return found


def test_the_page_is_current(features):
    page = (ROOT / 'docs' / 'performance.md').read_text()
    begin, end = (f'<!-- {features.MARK}: {side} -->' for side in ('begin', 'end'))
    assert (
        page.split(begin)[1].split(end)[0].strip() == features.format_features().strip()
    )


def test_it_does_not_depend_on_this_machine(features, monkeypatch):
    expected = features.format_features()
    monkeypatch.setenv('PELK_MM_ISA', 'none')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    monkeypatch.setattr(features.availability, '_failures', {'cuda': 'it failed'})
    monkeypatch.setattr(torch.version, 'hip', '6.4')
    assert features.format_features() == expected


def test_every_reason_is_given_once(features):
    text = features.format_features()
    cells = set(rows_of(text).values())
    referred = {cell for cell in cells if cell.startswith(features.NO)}
    listed = [line.split('. ', 1) for line in text.splitlines() if line[:1].isdigit()]
    assert referred == {f'{features.NO} ({number})' for number, _ in listed}
    reasons = [reason for _, reason in listed]
    assert len(set(reasons)) == len(reasons)


class Picky(TorchConv):
    """One that refuses stripes, channels_last and float16."""

    stands_in = False

    def why_not(self, problem):
        if problem.dtype == torch.float16:
            return 'halves are refused'
        if problem.kernel[0] != problem.kernel[1]:
            return 'stripes are refused'
        return 'a layout is refused' if problem.channels_last else None

    def forward_into(self, *args):
        """Of its own."""

    def backward_into(self, *args):
        """Of its own."""


def test_a_new_backend_gets_its_rows(features, monkeypatch):
    picky = Picky('nchw')
    picky.name = 'picky'
    monkeypatch.setitem(choose.BACKENDS, 'picky', picky)
    rows = rows_of(features.format_features())
    assert rows['picky', 'CPU, other'] == 'all but float16'
    assert rows['picky', 'kernels'] == 'dense, peripheral'
    assert rows['picky', 'layouts'] == 'contiguous'
    assert rows['picky', 'gradients'] == 'yes'
    assert rows['picky', 'partial convolution'] == 'in place'
    assert rows['picky', 'chosen'] == 'by expected time'


def test_writing_needs_the_marks(features, tmp_path, monkeypatch, capsys):
    page = tmp_path / 'page.md'
    page.write_text('nothing')
    monkeypatch.setattr('sys.argv', ['backend_features.py', '--write', str(page)])
    with pytest.raises(SystemExit):
        features.main()
    assert 'page.md lacks the lines <!-- backend_features' in capsys.readouterr().err
    page.write_text('<!-- backend_features: begin -->\n<!-- backend_features: end -->')
    features.main()
    assert features.format_features() in page.read_text()
