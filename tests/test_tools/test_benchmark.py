import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import benchmark as tool

ROOT = Path(__file__).resolve().parents[2]
NARROW = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 96)),
    backbone=dict(
        type='PeLK',
        arch=dict(
            channels=[8, 16], depths=[1, 1], kernel_sizes=[11, 9], central_radius=2
        ),
        out_indices=(0, 1),
    ),
    decode_head=dict(
        type='FCNHead', in_channels=16, in_index=1, channels=8, num_classes=5
    ),
)
"""


@pytest.fixture(autouse=True, scope='module')
def _one_thread(one_thread):
    """For all tests of this file."""


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """Runs the tool in this process: the frameworks are imported once."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['benchmark.py'])
        try:
            code = tool.main([*map(str, arguments)])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return run


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'narrow.py'
    path.write_text(NARROW)
    return path


@pytest.mark.long
def test_a_small_run(benchmark, config, tmp_path):
    result = benchmark(
        config,
        '--deploy',
        '--against',
        *('--iters', 2, '--batch', 2, '--threads', torch.get_num_threads()),
        *('--device', 'cpu', '--in-process'),
        *('--json', tmp_path / 'found.json', '--markdown', tmp_path / 'found.md'),
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == '# whole model, 2 x 3 x 64 x 96, float32, random weights'
    assert lines[1].startswith('# processor: ')
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines[5:7]]
    assert [row[:2] for row in rows] == [['narrow', 'eager'], ['narrow', 'deployed']]
    assert rows[0][2] == ''
    assert 0 < float(rows[1][2]) < 1e-5
    assert rows[0][4] == '1.00'
    assert rows[0][7] == 'unknown'
    assert '  differs from eager by ' in result.stderr
    assert (tmp_path / 'found.md').read_text() == result.stdout
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['machine']['torch'] == torch.__version__
    assert [row['engine'] for row in found['rows']] == ['eager', 'deployed']
    for row in found['rows']:
        assert len(row['seconds']) == 2
        assert row['images_per_second'] == pytest.approx(2 / row['median'])


def test_forms_and_models_by_default(benchmark, config, monkeypatch, tmp_path):
    from pelk_mm.analysis import throughput

    asked = {}

    def measure(subjects, engines, setting, *rest):
        asked.update(subjects=subjects, engines=engines, setting=setting)
        raise throughput.NothingMeasuredError('nothing could be measured: full')

    monkeypatch.setattr(throughput, 'measure', measure)
    result = benchmark(config, '--amp', '--channels-last', '--device', 'cpu')
    assert result.returncode == 1
    assert 'benchmark.py: nothing could be measured: full' in result.stderr
    assert tuple(asked['engines']) == tool.ENGINES
    names = [subject.name for subject in asked['subjects']]
    assert names == ['narrow', 'swin_tiny', 'convnext_tiny']
    setting = asked['setting']
    assert setting.amp
    assert setting.channels_last
    assert setting.shape == (64, 96)
    other = 'upernet_slak_t_ade20k'
    benchmark(config, '--compile', '--against', other, '--engines', 'openvino')
    assert asked['engines'] == ['openvino', 'compiled']
    assert asked['subjects'][1].config == str(ROOT / 'configs' / f'{other}.py')
    assert list(tmp_path.iterdir()) == [config]


def test_the_names_of_forms_are_those_of_the_package():
    from pelk_mm.analysis.engines import ENGINES

    assert set(ENGINES) == {*tool.ENGINES, *tool.OTHER_ENGINES}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--batch', '0'], "'0' is not a positive whole number"),
        (['--shape', '8', '2048'], '--shape 8 2048: images are too small'),
        (['--seconds', '-1'], '--seconds -1.0 is negative'),
        (['--seconds', 'nan'], '--seconds nan is negative'),
        (['--engines', 'tensorrt'], "invalid choice: 'tensorrt'"),
        (['--json', 'gone/a.json'], 'gone/a.json is not a file in an existing folder'),
        (['--markdown', '.'], '. is not a file in an existing folder'),
    ],
)
def test_wrong_command_lines(benchmark, config, arguments, message):
    result = benchmark(config, *arguments)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--checkpoint', 'gone.pth'], 'gone.pth does not exist'),
        (['--against', 'swin_huge'], '--against swin_huge is none of swin_tiny'),
        (['--cfg-options', 'model.backbone.depth=2'], 'cannot be built: '),
        (['--device', 'cuda'], '--device cuda: torch '),
    ],
)
def test_bad_input_ends_in_one_line(benchmark, config, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    result = benchmark(config, *arguments)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith('benchmark.py: ')
    assert message in line


@pytest.mark.long
def test_a_result_that_cannot_be_written(benchmark, config, monkeypatch, tmp_path):
    from pelk_mm import files

    def refuse(path):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(files, 'write_atomically', refuse)
    result = benchmark(
        config,
        *('--engines', 'eager', '--against', '--iters', 1, '--in-process'),
        *('--device', 'cpu', '--json', tmp_path / 'a.json'),
        *('--threads', torch.get_num_threads()),
    )
    assert result.returncode == 1
    assert 'cannot be written: [Errno 13]' in result.stderr
    assert '| narrow | eager |' in result.stdout  # not lost


@pytest.mark.slow  # two processes that import everything
def test_a_process_for_each_form(benchmark, config):
    result = benchmark(config, '--deploy', '--against', '--iters', 2, '--device', 'cpu')
    assert result.returncode == 0, result.stderr
    cells = [line.split('|') for line in result.stdout.splitlines()[5:7]]
    assert all(0 < float(row[8]) < 2000 for row in cells)
