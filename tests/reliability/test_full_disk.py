"""A disk that is full, or a limit on the size of files, while a checkpoint is saved."""

import os
import resource
import subprocess

import pytest
from mmengine.hooks import Hook

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.engine.resume import find_fault


class After(Hook):
    """Calls a function when an iteration has ended and before a checkpoint is saved."""

    priority = 'LOW'

    def __init__(self, iteration, function):
        self.iteration = iteration
        self.function = function

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.iteration:
            self.function()


@pytest.fixture
def limited():
    """Function that limits the size of files to a number of bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB of its own."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f'there is no mount: {error}')
    if mounted.returncode != 0:
        pytest.skip(f'a file system cannot be mounted: {mounted.stderr.strip()}')
    yield folder
    subprocess.run(['umount', '--lazy', str(folder)], check=True)


def require_intact(folder, kills, resumed):
    """The second checkpoint is there as it was, nothing else, and training goes on."""
    assert [path.name for path in folder.glob('*.pth')] == ['iter_4.pth']
    assert find_fault(folder / 'iter_4.pth') is None
    assert (folder / 'last_checkpoint').read_text() == str(folder / 'iter_4.pth')
    assert kills.temporary_files(folder) == []
    resumed.train()
    assert [path.name for path in folder.glob('*.pth')] == ['iter_7.pth']


SETTINGS = dict(checkpoint=dict(max_keep_ckpts=1))


def test_limit_on_the_size_of_files(make_small, kills, tmp_path, limited):
    # Not too little for mmengine's log.
    limit = After(5, lambda: limited((tmp_path / 'iter_4.pth').stat().st_size // 2))
    match = (
        rf'^{tmp_path}/iter_6\.pth cannot be written: File too large '
        rf'\(0\.\d MB needed, .* free\); {tmp_path}/iter_4\.pth is complete: '
        'free space, then go on with --resume$'
    )
    with pytest.raises(CheckpointError, match=match):
        make_small(tmp_path, hooks=[limit], **SETTINGS).train()
    limited(resource.RLIM_INFINITY)
    resumed = make_small(tmp_path, resume=True, **SETTINGS)
    require_intact(tmp_path, kills, resumed)


def test_full_file_system(make_small, kills, small_disk):
    rest = small_disk / 'rest'

    def fill():
        with rest.open('wb') as file:
            free = os.statvfs(small_disk)
            file.write(bytes(max(0, free.f_bavail * free.f_bsize - 8192)))

    with pytest.raises(CheckpointError, match=r'iter_6\.pth .*No space left on devi'):
        make_small(small_disk, hooks=[After(5, fill)], **SETTINGS).train()
    rest.unlink()
    resumed = make_small(small_disk, resume=True, **SETTINGS)
    require_intact(small_disk, kills, resumed)


def test_nothing_was_saved_before(make_small, tmp_path, limited):
    match = r'iter_2\.pth cannot .*; no checkpoint had been saved before; free space an'
    hook = After(1, lambda: limited(4096))
    with pytest.raises(CheckpointError, match=match):
        make_small(tmp_path, hooks=[hook]).train()
    assert list(tmp_path.glob('*.pth')) == []


def test_folder_that_cannot_be_written(make_small, tmp_path):
    """Also as root, whom permissions do not stop."""
    (tmp_path / 'file').write_text('')
    runner = make_small(
        tmp_path / 'work', checkpoint=dict(out_dir=str(tmp_path / 'file' / 'below'))
    )
    with pytest.raises(
        CheckpointError, match='iter_2.pth cannot be written: Not a dir'
    ):
        runner.train()
