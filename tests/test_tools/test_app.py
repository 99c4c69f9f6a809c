"""The command line of the page."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'app.py'
spec = importlib.util.spec_from_file_location('app', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_demonstration_out_of_the_box(here):
    training = here / 'work_dirs' / 'demo' / 'training'
    training.mkdir(parents=True)
    for name in ('the_config.py', 'iter_200.pth', 'iter_1000.pth'):
        (training / name).touch()
    os.utime(training / 'iter_200.pth', (0, 0))
    args = tool.parse_args([])
    assert Path(args.config) == Path('work_dirs/demo/training/the_config.py')
    assert Path(args.checkpoint).name == 'iter_1000.pth'
    assert (args.host, args.port, args.compare) == ('127.0.0.1', None, None)


def test_kept_weights_where_no_demonstration_was_run(here, monkeypatch):
    monkeypatch.setattr(tool, 'files_root', lambda: here)
    weights = here / 'demo' / 'weights'
    weights.mkdir(parents=True)
    (weights / f'{tool.KEPT}.pth').touch()
    args = tool.parse_args([])
    assert Path(args.config) == here / 'configs' / 'examples' / f'{tool.KEPT}.py'
    assert Path(args.checkpoint) == weights / f'{tool.KEPT}.pth'
    assert (ROOT / Path(args.config).relative_to(here)).is_file()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'no checkpoint of the demonstration; run `make demo` in a clone'),
        (['a.py'], "there is no config 'a.py'; "),
        (['./a.py'], 'CONFIG needs a CHECKPOINT'),
        (['upernet_pelk_t_ade20k', 'b.pth', '--port', '0'], '--port 0 is not from 1'),
        (['upernet_pelk_t_ade20k', 'b.pth', '--max-size', '0'], '--max-size 0 is not'),
        (
            ['./a.py', 'b.pth', '--compare', 'upernet_pelk_ade20k', 'c.pth'],
            '--compare: t',
        ),
    ],
)
def test_wrong_command_lines(arguments, message, here, capsys, monkeypatch):
    if not arguments:  # what an installed wheel has
        monkeypatch.setattr(tool, 'files_root', lambda: here)
    with pytest.raises(SystemExit) as end:
        tool.parse_args(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_names_of_configs(here):
    name = 'upernet_pelk_t_ade20k'
    args = tool.parse_args([name, 'a.pth', '--compare', name, 'b.pth'])
    assert Path(args.config).is_file()
    assert args.compare == [args.config, 'b.pth']


def test_missing_checkpoint_has_one_line(segmenter_files, here):
    pytest.importorskip('gradio', reason='gradio, the extra app, is not installed')
    with pytest.raises(SystemExit) as end:
        tool.main([str(segmenter_files / 'segmenter.py'), 'gone.pth'])
    assert 'gone.pth does not exist' in end.value.code
    assert '\n' not in end.value.code


@pytest.mark.slow
@pytest.mark.parametrize('ending', [signal.SIGINT, signal.SIGTERM])
def test_ending_removes_the_uploads(segmenter_files, tmp_path, ending):
    pytest.importorskip('gradio', reason='gradio, the extra app, is not installed')
    files = [str(segmenter_files / f'segmenter.{suffix}') for suffix in ('py', 'pth')]
    with subprocess.Popen(
        [sys.executable, str(TOOL), *files],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'TMPDIR': str(tmp_path)},
    ) as process:
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if 'The page is at' in line:
                    break
            assert re.search(r'http://127\.0\.0\.1:\d+', lines[-1]), lines
            assert len(list(tmp_path.glob('pelk_mm_app_*'))) == 1
            process.send_signal(ending)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert list(tmp_path.glob('pelk_mm_app_*')) == []
