"""Writing files completely or not at all."""

import os
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
