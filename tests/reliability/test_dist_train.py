"""Two processes on the CPU through ``tools/dist_train.sh``: real trainings, and a kill.

Each runs a published config, narrowed, with a hook that notes what every process has.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmengine.config import Config

from scenes import write_dataset

ROOT = Path(__file__).resolve().parents[2]
#: Seconds within which a job ends after one of its processes has died.
END = 60
#: Config, and whether it trains sparsely.
TRAININGS = {
    'pelk': ('upernet_pelk_t_ade20k', True),
    'slak': ('upernet_slak_t_ade20k', True),
    'replknet': ('upernet_replknet_31b_ade20k', False),
}
#: Warns once, to show that warnings are seen, then notes weights, masks and iterations.
HOOK = """
import hashlib, json, os, warnings
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from pelk_mm.sparsity import DynamicSparsityHook

torch.set_warn_always(True)


def digests(tensors):
    return {name: hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()
            for name, tensor in tensors}


@HOOKS.register_module()
class NoteHook(Hook):
    priority = 'VERY_LOW'

    def before_train(self, runner):
        warnings.warn(f'rank {runner.rank} can be heard')

    def after_train_iter(self, runner, *args, **kwargs):
        Path(f'rank_{runner.rank}.txt').write_text(f'{os.getpid()} {runner.iter}')

    def after_train(self, runner):
        masks = [hook.masks.masks for hook in runner.hooks
                 if isinstance(hook, DynamicSparsityHook) and hook.masks is not None]
        Path(f'rank_{runner.rank}.json').write_text(json.dumps(dict(
            wrapper=type(runner.model).__name__,
            weights=digests(runner.model.module.named_parameters()),
            masks=[digests(each.items()) for each in masks])))
"""


@pytest.fixture
def prepare(narrow, tmp_path):
    """Writes a config that trains on a few drawn scenes."""

    def write(name, sparse, iterations, **backbone):
        write_dataset(tmp_path / 'data', 0, {'training': 8, 'validation': 1})
        cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
        cfg = narrow(cfg, 'ranks', tmp_path)
        cfg.model.backbone.update(backbone)
        cfg.train_cfg.update(max_iters=iterations, val_interval=100_000)
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.update(num_workers=0, persistent_workers=False)
            loader.dataset.data_root = str(tmp_path / 'data')
        if sparse:
            cfg.default_hooks.sparsity.update(update_interval=2)
        cfg.custom_hooks = [dict(type='NoteHook')]
        cfg.custom_imports.imports.append('note_hook')
        for entry in ('work_dir', 'experiment_name'):
            cfg.pop(entry)
        cfg.visualizer.pop('name')
        cfg.dump(tmp_path / 'config.py')
        (tmp_path / 'note_hook.py').write_text(HOOK)

    return write


@pytest.fixture
def dist_train(tmp_path):
    """Starts two processes on the config; what they print goes to ``log``."""
    started = []

    def start():
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        job = subprocess.Popen(
            ['bash', ROOT / 'tools' / 'dist_train.sh', 'config.py', '2'],
            stdout=(tmp_path / 'log').open('w'),
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env=os.environ
            | dict(
                PYTHON=sys.executable,
                PORT=str(port),
                PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]),
                OMP_NUM_THREADS='1',
                CUDA_VISIBLE_DEVICES='',
            ),
            start_new_session=True,
        )
        started.append(job)
        return job

    yield start
    for job in started:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'sparse'), TRAININGS.values(), ids=TRAININGS)
def test_two_ranks_train_the_same_model(name, sparse, prepare, dist_train, tmp_path):
    prepare(name, sparse, 5, frozen_stages=1, with_cp=True)
    assert dist_train().wait(1200) == 0, (tmp_path / 'log').read_text()[-3000:]
    log = (tmp_path / 'log').read_text()
    for rank in range(2):
        assert f'rank {rank} can be heard' in log
    for warning in ('strides do not match', 'find_unused_parameters', 'not used in'):
        assert warning not in log
    notes = [
        json.loads((tmp_path / f'rank_{rank}.json').read_text()) for rank in (0, 1)
    ]
    assert notes[0] == notes[1]
    assert notes[0]['wrapper'] == 'MMDistributedDataParallel'
    assert len(notes[0]['weights']) > 50
    assert len(notes[0]['masks']) == sparse
    assert (tmp_path / 'work_dirs' / 'config' / 'iter_5.pth').is_file()


#: What the batch script of the docs calls: Slurm, of two machines that are this one.
COMMANDS = {
    'scontrol': 'printf "127.0.0.1\\nelsewhere\\n"',
    'srun': """
shift  # --kill-on-bad-exit=1
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
wait $first && wait $second
""",
    'pelk-mm': f'exec {sys.executable} -m pelk_mm "$@"',
}


@pytest.mark.slow
def test_batch_script_of_the_docs(prepare, tmp_path):
    """Two machines of one process each."""
    prepare('upernet_pelk_t_ade20k', False, 2)
    page = (ROOT / 'docs' / 'ranks.md').read_text()
    script = page.split('<!-- slurm -->\n```bash\n')[1].split('```')[0]
    (tmp_path / 'job.sh').write_text(script)
    commands = tmp_path / 'bin'
    commands.mkdir()
    for name, text in COMMANDS.items():
        (commands / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
        (commands / name).chmod(0o755)
    finished = subprocess.run(
        ['bash', 'job.sh'],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=1200,
        env=os.environ
        | dict(
            PATH=f'{commands}{os.pathsep}{os.environ["PATH"]}',
            PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]),
            CONFIG='config.py',
            SLURM_NNODES='2',
            SLURM_JOB_ID=str(os.getpid()),
            SLURM_JOB_NODELIST='node[1-2]',
            SLURM_GPUS_ON_NODE='1',
            OMP_NUM_THREADS='1',
            CUDA_VISIBLE_DEVICES='',
        ),
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    notes = [
        json.loads((tmp_path / f'rank_{rank}.json').read_text()) for rank in (0, 1)
    ]
    assert notes[0] == notes[1]
    assert (tmp_path / 'out' / 'iter_2.pth').is_file()


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_rank_ends_the_job(victim, prepare, dist_train, tmp_path):
    prepare('upernet_pelk_t_ade20k', False, 100_000)
    job = dist_train()
    notes = [tmp_path / f'rank_{rank}.txt' for rank in (0, 1)]
    deadline = time.monotonic() + 600
    while not all(note.exists() and note.read_text().split()[1:] for note in notes):
        assert job.poll() is None, (tmp_path / 'log').read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ranks = [int(note.read_text().split()[0]) for note in notes]
    os.kill(ranks[victim], signal.SIGKILL)
    before = time.monotonic()
    assert job.wait(END) != 0
    print(
        f'rank {victim} killed; the job ended after {time.monotonic() - before:.1f} s'
    )
    assert not any(Path(f'/proc/{rank}').exists() for rank in ranks)
    log = (tmp_path / 'log').read_text()
    assert 'ChildFailedError' in log
    assert 'exitcode  : -9' in log
