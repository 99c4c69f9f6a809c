"""Conversion: what a kill leaves, and how much memory it takes."""

import subprocess
import sys

import pytest
import torch

from pelk_mm.backbones import SLaK
from pelk_mm.checkpoints import to_released


def released(**arch):
    """The released state dict of a SLaK of two stages."""
    model = SLaK(arch, out_indices=(0, 1))
    return to_released(model.state_dict(), 'slak').converted


KILLED = """
import os, signal, sys
import torch
import pelk_mm.files
from pelk_mm.checkpoints import files
from pelk_mm.conversion.convert import convert_checkpoint

torch.set_num_threads(1)

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def save_half(content, file):
    file.write(b'PK' * 500)
    file.flush()
    die()

for point in ('create', 'save', 'verify', 'rename', 'done'):
    child = os.fork()
    if not child:
        if point == 'create':
            pelk_mm.files.mkstemp = die
        if point == 'save':
            torch.save = save_half
        if point == 'verify':
            files._same_bits = die
        if point == 'rename':
            pelk_mm.files.Path.replace = die
        convert_checkpoint('src.pth', 'dst.pth', force=True)
        die()
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    old = open('dst.pth', 'rb').read() == b'old'
    assert old == (point != 'done'), point
assert len(torch.load('dst.pth', weights_only=True)['state_dict']) > 20
"""


@pytest.mark.long
def test_a_kill_leaves_the_old_file_or_the_new(tmp_path):
    arch = dict(channels=[4, 6], depths=[1, 1], kernel_sizes=[7, 5], small_kernel=3)
    torch.save(released(**arch), tmp_path / 'src.pth')
    (tmp_path / 'dst.pth').write_bytes(b'old')
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', KILLED],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


MEMORY = """
import resource
from pelk_mm.conversion.convert import convert_checkpoint

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
convert_checkpoint('src.pth', 'dst.pth')
print(peak() - before)
"""


@pytest.mark.long
def test_memory_stays_near_twice_the_size(tmp_path):
    """The source and the result that is verified against it, both in their files."""
    arch = dict(channels=[64, 512], depths=[1, 12], kernel_sizes=[7, 7])
    torch.save(released(**arch), tmp_path / 'src.pth')
    size = (tmp_path / 'src.pth').stat().st_size
    assert size > 100e6
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', MEMORY],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    for path in tmp_path.iterdir():
        path.unlink()
    assert int(result.stdout) < 2.3 * size, result.stderr
