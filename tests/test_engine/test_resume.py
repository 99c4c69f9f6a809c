import shutil
import time

import pytest
import torch

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.engine.resume import find_fault, find_resume_point, require_readable


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints, of which last_checkpoint names the last."""
    for number in (2, 4, 10):
        write(tmp_path / f'iter_{number}.pth', number)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_10.pth'))
    return tmp_path


def write(path, number, day='20260101', **entries):
    checkpoint = dict(
        meta=dict(iter=number, epoch=0, time=f'{day}_0000{number:02d}'),
        state_dict=dict(weight=torch.rand(1000)),
        message_hub=dict(),
        optimizer=dict(),
    )
    torch.save({**checkpoint, **entries}, path)


def find(folder):
    return find_resume_point(folder, folder, 'iter_{}.pth')


def test_the_last_one_needs_no_notice(folder):
    assert find(folder) == (str(folder / 'iter_10.pth'), None)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-50])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def strip(path):
    write(path, 10, optimizer=None)
    checkpoint = torch.load(path)
    del checkpoint['optimizer']
    torch.save(checkpoint, path)


DAMAGE = {
    'is empty': lambda path: path.write_bytes(b''),
    'is truncated: its end is missing': truncate,
    'is damaged: the checksum of its record': flip,
    'does not exist': lambda path: path.unlink(),
    'is not a checkpoint': lambda path: path.write_bytes(b'no checkpoint' * 99),
    "has no optimizer's state to resume": strip,
    'has no weights to resume': lambda path: torch.save(dict(meta=dict(iter=1)), path),
    'has no iteration number to resume': lambda path: torch.save(dict(a=1), path),
    'is no checkpoint of a training': lambda path: torch.save([1], path),
}


@pytest.mark.parametrize(('reason', 'damage'), DAMAGE.items(), ids=DAMAGE)
def test_a_damaged_last_one_falls_back(folder, reason, damage):
    damage(folder / 'iter_10.pth')
    path, notice = find(folder)
    assert path == str(folder / 'iter_4.pth')
    assert notice.startswith(
        f'{folder / "iter_10.pth"}, which was saved last, {reason}'
    )
    assert notice.endswith(f'; resuming from {path} instead')
    assert 'download' not in notice


@pytest.mark.parametrize('content', [None, b'', b'\n', b'\xff\xfe'])
def test_without_a_name_the_newest_is_taken(folder, content):
    last = folder / 'last_checkpoint'
    last.unlink() if content is None else last.write_bytes(content)
    path, notice = find(folder)
    assert path == str(folder / 'iter_10.pth')
    assert ('has no last_checkpoint' if content is None else 'names no') in notice


def test_newest_is_not_the_highest_number_nor_the_latest_copy(folder):
    """Of an earlier training in the same folder, copied a moment ago."""
    (folder / 'last_checkpoint').unlink()
    write(folder / 'old.pth', 900, day='20250101')
    time.sleep(0.01)
    shutil.copy(folder / 'old.pth', folder / 'iter_900.pth')
    assert find(folder).path == str(folder / 'iter_10.pth')


def test_a_moved_folder_resumes_from_its_own(folder, tmp_path):
    moved = tmp_path / 'moved'
    moved.mkdir()
    for path in [*folder.glob('*.pth'), folder / 'last_checkpoint']:
        shutil.move(path, moved / path.name)
    assert find(moved).path == str(moved / 'iter_10.pth')


def test_an_empty_folder_starts_from_the_beginning(tmp_path):
    path, notice = find(tmp_path)
    assert path is None
    assert notice.endswith('no checkpoint; the training starts from its beginning')


def test_a_folder_of_shards_or_an_address_is_for_mmengine(folder):
    (folder / 'shards').mkdir()
    for name in (str(folder / 'shards'), 's3://bucket/iter_4.pth'):
        (folder / 'last_checkpoint').write_text(name)
        assert find(folder) == (name, None)


def test_it_does_not_start_again_over_what_is_damaged(folder):
    for path in folder.glob('*.pth'):
        truncate(path)
    with pytest.raises(CheckpointError, match='is truncated.*no other.*without --res'):
        find(folder)
    (folder / 'last_checkpoint').unlink()
    with pytest.raises(CheckpointError, match='has no last_checkpoint, and no other'):
        find(folder)


def test_a_checkpoint_that_was_asked_for_is_not_replaced(folder):
    good, bad = folder / 'iter_4.pth', folder / 'iter_10.pth'
    truncate(bad)
    require_readable(str(good), folder, 'iter_{}.pth')
    match = rf'{bad} is truncated.*set load_from={good}$'
    with pytest.raises(CheckpointError, match=match):
        require_readable(str(bad), folder, 'iter_{}.pth')
    (folder / 'empty').mkdir()
    (folder / 'empty' / 'iter_1.pth').write_bytes(b'')
    with pytest.raises(CheckpointError, match='no checkpoint in .* either'):
        require_readable(
            str(folder / 'empty' / 'iter_1.pth'), folder / 'empty', 'iter_{}.pth'
        )


def test_a_fault_does_not_repeat_the_name(folder):
    assert find_fault(folder / 'iter_4.pth') is None
    assert find_fault(folder / 'gone.pth') == 'does not exist'
