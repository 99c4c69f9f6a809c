"""Writing: all of a file or nothing."""

import pytest

from pelk_mm.files import write_atomically


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_text('old')

    def write_half():
        with write_atomically(path) as temporary:
            temporary.write_text('half')
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]
    with write_atomically(path) as temporary:
        temporary.write_text('new')
    assert path.read_text() == 'new'
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / 'plain').touch()
    assert path.stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_a_folder_that_is_not_there_is_the_systems_error(tmp_path):
    with (
        pytest.raises(FileNotFoundError),
        write_atomically(tmp_path / 'nowhere' / 'a.txt'),
    ):
        pass
