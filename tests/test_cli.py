"""The console script: `pelk-mm` and `python -m pelk_mm`."""

import os
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

from pelk_mm_cli import (
    TAKE_CONFIG,
    find_tools,
    list_tools,
    main,
    resolve_configs,
    run_script,
    summarize,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs' / 'upernet_pelk_t_ade20k.py'


@pytest.fixture
def pelk_mm(run_command):
    """Runs the console script."""
    return lambda *arguments: run_command(main, 'pelk-mm', *arguments)


def test_every_tool_has_one_line():
    tools = find_tools()
    scripts = [*(ROOT / 'tools').rglob('*.py'), *(ROOT / 'tools').rglob('*.sh')]
    assert sorted(tools.values()) == sorted(scripts)  # no name is there twice
    lines = list_tools().splitlines()
    for name, path in tools.items():
        assert len(summarize(path)) > 20
        assert f'  {name:<20}{summarize(path)}' in lines
    assert set(tools) > TAKE_CONFIG


@pytest.mark.parametrize('arguments', [[], ['--help'], ['-h']])
def test_alone_it_lists_the_tools(arguments, pelk_mm):
    assert pelk_mm(*arguments) == (0, f'{list_tools()}\n', '')


def test_version(pelk_mm):
    assert pelk_mm('--version') == (0, f'{version("pelk_mm")}\n', '')


@pytest.mark.parametrize(
    ('name', 'hint'),
    [('convert-checkpoint', 'did you mean convert_checkpoint? '), ('42', '')],
)
def test_unknown_tool(name, hint, pelk_mm):
    message = f'pelk-mm: there is no tool {name!r}; {hint}`pelk-mm` lists the tools\n'
    assert pelk_mm(name) == (2, '', message)


def test_names_of_configs_become_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, others = CONFIG.stem, ['--work-dir', CONFIG.stem]
    assert resolve_configs('train', [name, *others]) == [str(CONFIG), *others]
    assert resolve_configs('test', [f'{name}.py']) == [str(CONFIG)]
    assert resolve_configs('convert_checkpoint', [name]) == [name]
    for arguments in ([], ['--help'], ['gone/config.py']):
        assert resolve_configs('train', arguments) == arguments
    (tmp_path / name).touch()  # a file comes first
    assert resolve_configs('train', [name]) == [name]


def test_unknown_config(pelk_mm):
    code, _, error = pelk_mm('train', 'upernet_pelk_t_ade20')
    assert code == 2
    assert error.startswith(
        "pelk-mm train: there is no config 'upernet_pelk_t_ade20'; did "
    )
    assert error.count('\n') == 1


def test_training_by_name_reads_the_config(pelk_mm):
    result = pelk_mm('train', CONFIG.stem, '--work-dir', 'out')
    assert result.returncode == 1
    assert "data_root 'data/ade/ADEChallengeData2016'" in result.stderr
    assert result.stderr.count('\n') == 1


def test_usage_names_the_command(pelk_mm):
    for tool in ('convert_checkpoint', 'train'):
        result = pelk_mm(tool, '--help')
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(f'usage: pelk-mm {tool} ')


def test_exit_codes_are_the_tools(pelk_mm):
    result = pelk_mm('convert_checkpoint', 'gone.pth', 'out.pth')
    assert result.returncode == 1
    assert 'gone.pth' in result.stderr
    assert pelk_mm('convert_checkpoint').returncode == 2


def test_script_is_the_main_module(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', sys.argv)
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    script = tmp_path / 'script.py'
    script.write_text(
        'import sys\nif __name__ == "__main__":\n'
        '    print(sys.argv, __file__, sys.modules["__main__"].sys is sys)\n'
        '    sys.exit(7)\n'
    )
    with pytest.raises(SystemExit) as end:
        run_script(script, ['a', '--b'], 'pelk-mm script')
    assert end.value.code == 7
    assert capsys.readouterr().out == (
        f"['pelk-mm script', 'a', '--b'] {script} True\n"
    )


def test_usage_and_wrong_arguments_do_not_wait_for_torch(tmp_path):
    block = 'import sys; sys.modules.update(torch=None, numpy=None, mmengine=None); '
    code = f'{block}import pelk_mm_cli; pelk_mm_cli.main()'
    for arguments, expected in [
        ([], 0),
        (['no_tool'], 2),
        (['convert_checkpoint', '--help'], 0),
        (['image_demo', '--help'], 0),
        (['app', '--help'], 0),
        (['app', CONFIG.stem], 2),
        (['config', CONFIG.stem], 0),
        (['train', 'no_config'], 2),
        (['convert_checkpoint'], 2),
    ]:
        result = subprocess.run(
            [sys.executable, '-c', code, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == expected, result.stderr
        assert 'Traceback' not in result.stderr


ECHO = '#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n'


@pytest.mark.parametrize(
    ('tool', 'positional'),
    [
        ('dist_train', [CONFIG.stem, '2']),
        ('dist_test', [CONFIG.stem, 'a.pth', '2']),
        ('slurm_train', ['part', 'job', CONFIG.stem]),
        ('slurm_test', ['part', 'job', CONFIG.stem, 'a.pth']),
    ],
)
def test_launchers_start_this_command(tool, positional, tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text(ECHO)
    srun.chmod(0o755)
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    # torch.distributed.run imports torch; what it would start is enough.
    python = tmp_path / 'python'
    python.write_text(ECHO)
    python.chmod(0o755)
    script = find_tools()[tool]
    result = subprocess.run(
        ['bash', script, *positional, '--amp'],
        capture_output=True,
        text=True,
        env={**os.environ, 'PATH': path, 'PYTHON': str(python)},
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    command = result.stdout.splitlines()
    framework_tool = tool.partition('_')[2]
    start = command.index('pelk_mm')
    assert command[start - 1 : start + 3] == [
        '-m',
        'pelk_mm',
        framework_tool,
        CONFIG.stem,
    ]
    assert command[-1] == '--amp'
    launcher = 'slurm' if tool.startswith('slurm') else 'pytorch'
    assert command[command.index('--launcher') + 1] == launcher


def test_shell_script_runs_with_this_interpreter(tmp_path):
    # Its usage, for want of arguments, as the exit code of bash.
    result = subprocess.run(
        [sys.executable, '-m', 'pelk_mm', 'dist_train', '--help'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
    )
    assert result.returncode == 2
    assert result.stderr == 'usage: dist_train CONFIG GPUS [flags of train]\n'


def test_console_script_is_installed():
    (script,) = entry_points(group='console_scripts', name='pelk-mm')
    assert script.value == 'pelk_mm_cli:main'
