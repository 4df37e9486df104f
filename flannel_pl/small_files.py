"""Reading files that may be anything: only regular ones, and only small ones where small ones are expected.

A folder from elsewhere may hold a pipe or a device where a file is expected. Opening the first would wait for
a writer, reading the second would never end.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 64 * 2**20
"""More than the largest of the files that are read whole: an index over thousands of runs."""


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading; never waits.

    Raises:
        OSError: If it cannot be opened, or is no regular file.
    """
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_small(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns the content of a regular file.

    Raises:
        OSError: If it cannot be read, is no regular file, or has more than `max_bytes` bytes.
    """
    with open_regular(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes <= max_bytes:
            return file.read(num_bytes)
    raise OSError(errno.EFBIG, f"it has {num_bytes} bytes, expected {max_bytes} at most", str(path))


def read_end(path: Path, *, max_bytes: int = 2**16) -> bytes:
    """Returns the last bytes of a regular file, at most `max_bytes`.

    Raises:
        OSError: If it cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - max_bytes))
        return file.read(max_bytes)


def _open_at_once(name: str, flags: int) -> int:
    # With O_NONBLOCK a pipe is opened without waiting for its other end. Windows has no such flag.
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
