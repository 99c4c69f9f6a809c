import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from pelk_mm.sparsity.report import format_table, read_layers

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'analysis' / 'sparsity_report.py'


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def weights():
    first = torch.ones(4, 5)
    first[:, :2] = 0
    return {
        'backbone.a.weight': first,
        'backbone.b.weight': torch.ones(3, 1, 3, 3),
        'backbone.position_embedding': torch.ones(2, 3, 3),
        'head.weight': torch.ones(2, 2),
    }


def test_table_and_picture(tmp_path):
    torch.save(dict(state_dict=weights(), meta=dict(iter=1)), tmp_path / 'a.pth')
    result = run(tmp_path / 'a.pth')
    assert result.returncode == 0, result.stderr
    lines = [' '.join(line.split()) for line in result.stdout.splitlines()]
    assert lines[1:4] == [
        'backbone.a.weight 4 x 5 20 12 0.6000',
        'backbone.b.weight 3 x 1 x 3 x 3 27 27 1.0000',
        'all 2 layers 47 39 0.8298',
    ]
    assert cv2.imread(str(tmp_path / 'sparsity.png')).std() > 10
    assert {path.name for path in tmp_path.iterdir()} == {'a.pth', 'sparsity.png'}


def test_masks_say_what_was_promised():
    state = weights()
    masks = {'backbone.a.weight': state['backbone.a.weight'] != 0}
    sparsity = dict(masks=masks, dense=['head.weight'])
    layers = read_layers(dict(state_dict=state, sparsity=sparsity))
    assert [layer.name for layer in layers] == ['backbone.a.weight', 'head.weight']
    assert format_table(layers).endswith(
        'The masks leave 16 weights active; as many are not zero.'
    )
    state['head.weight'][0] = 0
    assert format_table(layers).endswith('active; 14 are not zero.')


def test_plain_weights_without_a_backbone():
    norm = {'norm.weight': torch.ones(3)}
    layers = read_layers({'stem.weight': torch.ones(2, 3)} | norm)
    assert [layer.name for layer in layers] == ['stem.weight']
    with pytest.raises(ValueError, match='no 2-D or 4-D weights'):
        read_layers(norm)


@pytest.mark.parametrize('content', [None, b'', b'<html>'])
def test_bad_files(tmp_path, content):
    path = tmp_path / 'bad.pth'
    if content is not None:
        path.write_bytes(content)
    result = run(path)
    assert result.returncode == 1
    assert result.stderr.startswith('sparsity_report.py: error: ')
    assert 'Traceback' not in result.stderr
    assert not (tmp_path / 'sparsity.png').exists()
