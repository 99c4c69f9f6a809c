import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import get_flops as tool
from pelk_mm.backbones import PeLK

ROOT = Path(__file__).resolve().parents[2]
NARROW = """
_base_ = {base!r}
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            channels=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            kernel_sizes=[51, 49, 47, 13],
            central_radius=2,
        )
    ),
    decode_head=dict(in_channels=[8, 16, 24, 32]),
    auxiliary_head=dict(in_channels=24),
)
"""
ARCH = dict(
    channels=[8, 16, 24, 32],
    depths=[1, 1, 1, 1],
    kernel_sizes=[51, 49, 47, 13],
    central_radius=2,
)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'narrow.py'
    base = str(ROOT / 'configs' / 'upernet_pelk_t_ade20k.py')
    path.write_text(NARROW.format(base=base))
    return path


@pytest.fixture
def get_flops(monkeypatch, capsys):
    """Runs the tool in this process: the frameworks are imported once."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['get_flops.py', *map(str, arguments)])
        code = 0
        try:
            tool.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            print(end.code, file=sys.stderr)
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return run


def rows(result):
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith('| ')][1:]
    return {
        name.strip(): [cell.strip() for cell in cells]
        for _, name, *cells, _ in (line.split('|') for line in lines)
    }


def test_components_and_paper_sparsity(get_flops, config):
    result = get_flops(config)
    assert 'image of 512 x 2048 (H x W), 40% zeros' in result.stdout
    table = rows(result)
    assert list(table) == ['backbone', 'decode_head', 'auxiliary_head', 'all']
    parameters, nonzeros, papers, computed = table['backbone']
    assert float(nonzeros.split()[0]) < float(parameters.split()[0])
    assert float(computed.split()[0]) < float(papers.split()[0])
    assert table['auxiliary_head'][2:] == ['in training only'] * 2


def test_shape_and_zeros_of_a_checkpoint(get_flops, config, tmp_path):
    state = {name: torch.zeros_like(p) for name, p in PeLK(ARCH).state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'zeros.pth')
    result = get_flops(
        config, '--shape', '64', '96', '--checkpoint', tmp_path / 'zeros.pth'
    )
    assert 'image of 64 x 96' in result.stdout
    assert rows(result)['backbone'][1] == '0.00 M'


def test_checkpoints_that_the_converter_reads(get_flops, config, tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    state = PeLK(ARCH).state_dict()
    save_file(state, tmp_path / 'a.safetensors')
    # The released files hold their training script's arguments too.
    content = {'model': state, 'args': argparse.Namespace()}
    torch.save(content, tmp_path / 'a.pth')
    for name in ('a.safetensors', 'a.pth'):
        result = get_flops(config, '--checkpoint', tmp_path / name)
        parameters, nonzeros, *_ = rows(result)['backbone']
        assert nonzeros == parameters


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--sparsity', '1.5'], 'sparsity 1.5 is not in [0, 1)'),
        (['--shape', '8', '2048'], 'an image of 8 x 2048 is too small'),
        (['--checkpoint', 'gone.pth'], 'gone.pth does not exist'),
        (['--checkpoint', 'list.pth'], 'it holds a list, not weights'),
    ],
)
def test_bad_input_ends_in_one_line(
    get_flops, config, tmp_path, monkeypatch, arguments, message
):
    torch.save([1], tmp_path / 'list.pth')
    monkeypatch.chdir(tmp_path)
    result = get_flops(config, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith('get_flops.py: ')
