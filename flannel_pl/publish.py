"""Bringing what was written to the disk, on every system this runs on.

Functions of `os` and `fcntl` are looked up when called, so that tests can let any one of them fail.
"""

import errno
import os
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows, where recordings can be read
    fcntl = None

_FAILURES = (errno.EIO, errno.ENOSPC, errno.EDQUOT)

_NO_FOLDER_SYNC = (
    *(errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOTTY),
    *(errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR),
)
"""What systems answer that cannot sync a folder, or do not let a folder be opened for that."""


def sync(fd: int) -> None:
    """Returns once a file's content survives a power cut.

    Raises:
        OSError: If the disk fails; what it holds then nobody knows.
    """
    if (full := _full_sync()) is not None:
        try:
            fcntl.fcntl(fd, full)
        except OSError as error:
            if error.errno in _FAILURES:
                raise
        else:
            return
    os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """Returns once names made or changed in `folder` survive a power cut, as far as the system can do that.

    Raises:
        OSError: If the disk fails.
    """
    try:
        fd = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder to write into, not to list; or one on Windows
        return
    try:
        sync(fd)
    except OSError as error:
        # Some network file systems cannot sync a folder; they publish names at once.
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)


def _full_sync() -> int | None:
    """Returns macOS's request to empty the disk's own cache too, which its fsync does not."""
    return getattr(fcntl, "F_FULLFSYNC", None)
