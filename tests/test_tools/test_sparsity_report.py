import cv2
import pytest
import torch

TOOL = 'tools/analysis/sparsity_report.py'


def weights():
    first = torch.ones(4, 5)
    first[:, :2] = 0
    return {
        'backbone.a.weight': first,
        'backbone.b.weight': torch.ones(3, 1, 3, 3),
        'backbone.position_embedding': torch.ones(2, 3, 3),
        'head.weight': torch.ones(2, 2),
    }


def test_table_and_picture(run_tool, tmp_path):
    torch.save(dict(state_dict=weights(), meta=dict(iter=1)), tmp_path / 'a.pth')
    result = run_tool(TOOL, tmp_path / 'a.pth')
    assert result.returncode == 0, result.stderr
    lines = [' '.join(line.split()) for line in result.stdout.splitlines()]
    assert lines[1:4] == [
        'backbone.a.weight 4 x 5 20 12 0.6000',
        'backbone.b.weight 3 x 1 x 3 x 3 27 27 1.0000',
        'all 2 layers 47 39 0.8298',
    ]
    assert cv2.imread(str(tmp_path / 'sparsity.png')).std() > 10
    assert {path.name for path in tmp_path.iterdir()} == {'a.pth', 'sparsity.png'}


@pytest.mark.parametrize('content', [None, b'', b'<html>'])
def test_bad_files(run_tool, tmp_path, content):
    path = tmp_path / 'bad.pth'
    if content is not None:
        path.write_bytes(content)
    result = run_tool(TOOL, path)
    assert result.returncode == 1
    assert result.stderr.startswith('sparsity_report.py: ')
    assert 'Traceback' not in result.stderr
    assert not (tmp_path / 'sparsity.png').exists()
