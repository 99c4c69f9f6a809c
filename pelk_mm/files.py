"""Writing files completely or not at all."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Let a file appear under its name only when it is complete.

    Yields:
        A temporary path in the same folder. It is renamed when the block ends and
        deleted if the block raises; a process killed at any moment leaves under the
        final name either what was there before or all of the new file.

    Raises:
        OSError: If the folder cannot be written to.
    """
    number, name = mkstemp(dir=path.absolute().parent, prefix=f'.{path.name}.')
    os.close(number)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's files are the owner's alone
        with temporary.open('rb') as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_marked(page: Path, mark: str, text: str) -> None:
    """Put a text between two lines of a page, as scripts do whose tables it shows.

    Args:
        page: A Markdown file.
        mark: The name in the two lines, which are ``<!-- mark: begin -->`` and
            ``<!-- mark: end -->``.
        text: What comes between them, next to an empty line on either side.

    Raises:
        FileNotFoundError: If there is no such page.
        ValueError: If the page lacks one of the lines.
    """
    begin, end = f'<!-- {mark}: begin -->', f'<!-- {mark}: end -->'
    between = re.compile(f'(?<={begin}).*?(?={end})', re.DOTALL)
    whole, found = between.subn(lambda _: f'\n\n{text}\n', page.read_text(), count=1)
    if not found:
        raise ValueError(f'{page} lacks the lines {begin} and {end}')
    with write_atomically(page) as temporary:
        temporary.write_text(whole)
