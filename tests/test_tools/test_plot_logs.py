import json

import cv2
import pytest

import plot_logs as tool


@pytest.fixture
def plot_logs(run_command, tmp_path):
    """Runs the tool in a folder with two runs."""
    for name in ('one', 'two'):
        folder = tmp_path / name / '20240101_000000' / 'vis_data'
        folder.mkdir(parents=True)
        records = [dict(loss=1 / i, lr=0.1, iter=i, step=i) for i in range(1, 9)]
        records.append(dict(mIoU=30.0, step=8))
        lines = [json.dumps(record) + '\n' for record in records]
        (folder / 'scalars.json').write_text(''.join(lines))

    return lambda *arguments: run_command(tool.main, 'plot_logs.py', *arguments)


def test_table_and_picture(plot_logs, tmp_path):
    result = plot_logs('one', 'two', '--legend', 'a run', 'b', '--smooth', 3)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ''
    lines = [' '.join(line.split()) for line in result.stdout.splitlines()]
    assert lines == [
        'run key last at best at',
        'a run loss 0.125 8 0.125 8',
        'a run mIoU 30 8 30 8',
        'b loss 0.125 8 0.125 8',
        'b mIoU 30 8 30 8',
        'Curves: plot.png',
    ]
    assert cv2.imread(str(tmp_path / 'plot.png')).std() > 10
    assert {path.name for path in tmp_path.iterdir()} == {'one', 'two', 'plot.png'}


def test_other_format_and_notices(plot_logs, tmp_path):
    log = next((tmp_path / 'two').glob('*/vis_data/scalars.json'))
    log.write_text(log.read_text()[:-9])
    result = plot_logs('one', 'two', '--keys', 'lr', 'mIoU', '--out', 'curves.SVG')
    assert result.returncode == 0
    first, second = result.stderr.splitlines()
    assert 'its last line is cut off' in first
    assert second == 'Note: two has no mIoU.'
    assert '<svg' in (tmp_path / 'curves.SVG').read_text()


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        (['gone'], 1, 'gone does not exist'),
        (['one', '--keys', 'PQ'], 1, "no run has 'PQ'; there are loss, lr, mIoU"),
        (['one', '--out', 'plot.txt'], 1, 'plot.txt ends in none of .'),
        (['one', '--out', 'plot'], 1, 'plot ends in none of .'),
        (['one', '--out', 'no/plot.png'], 1, 'no/plot.png cannot be written'),
        (['one', '--legend', 'a', 'b'], 2, '--legend has 2 names for 1 runs'),
        (['one', '--smooth', '0'], 2, '0 is not positive'),
        (['one', '--smooth', 'x'], 2, 'invalid positive value'),
        ([], 2, 'required: RUN'),
    ],
)
def test_bad_input_ends_in_one_line(plot_logs, tmp_path, arguments, code, message):
    result = plot_logs(*arguments)
    assert result.returncode == code
    assert message in result.stderr.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {'one', 'two'}
