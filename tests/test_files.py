"""Writing: all of a file or nothing."""

import pytest

from pelk_mm.files import replace_marked, write_atomically


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


def test_a_table_is_replaced_in_a_page(tmp_path):
    page = tmp_path / 'page.md'
    begin, end = 'a\n<!-- counts: begin -->\n', '<!-- counts: end -->\nb\n'
    page.write_text(f'{begin}old\n{end}')
    for _ in range(2):
        replace_marked(page, 'counts', '| new |\n')
        assert page.read_text() == f'{begin}\n| new |\n\n{end}'
    assert list(tmp_path.iterdir()) == [page]
    page.write_text('no marks')
    with pytest.raises(ValueError, match='page.md lacks the lines <!-- counts'):
        replace_marked(page, 'counts', '')
