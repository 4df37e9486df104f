"""Room on a disk: how much there is, and reserving what a recording will need.

`os` functions are looked up when called, so that tests can let any one of them fail, or be absent.
"""

import errno
import functools
import logging
import os
import shutil
import struct
import sys
from pathlib import Path

from flannel_pl.publish import fcntl

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk answers, a full quota, or a file system that has no files of that size."""

# Of macOS's <sys/fcntl.h>; Python has no names for them.
_F_PREALLOCATE, _F_ALLOCATEALL, _F_PEOFPOSMODE = 42, 4, 3

# Of Linux's <linux/falloc.h>, likewise.
_KEEP_SIZE, _PUNCH_HOLE = 1, 2

_log = logging.getLogger(__name__)


def free_bytes(folder: Path) -> int | None:
    """Returns how much room there is on a folder's disk; None if that cannot be told."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total > 0 else None  # some network file systems know nothing


def preallocate(fd: int, num_bytes: int) -> None:
    """Gives the file its full size, with the space reserved where the system can do that.

    Raises:
        OSError: ENOSPC if the disk has not that much room.
    """
    if sys.platform == "darwin":
        _reserve_on_macos(fd, num_bytes)
    os.ftruncate(fd, num_bytes)
    reserve(fd, 0, num_bytes)


def reserve(fd: int, offset: int, num_bytes: int) -> None:
    """Reserves the space for a part of the file, where the system can do that.

    Raises:
        OSError: ENOSPC if the disk has not that much room.
    """
    if num_bytes == 0 or sys.platform == "darwin":
        return
    try:
        os.posix_fallocate(fd, offset, num_bytes)
    except AttributeError:
        _warn_of_no_reservation()
    except OSError as error:
        # Whatever else it says, a disk that fails will fail the writes too.
        if error.errno in NO_SPACE:
            raise
        _warn_of_no_reservation()


def give_back(fd: int, offset: int, num_bytes: int) -> None:
    """Gives the space of a part of the file back to the disk, where the system can do that.

    It reads as zeros then. What it holds does not matter to anybody, so no refusal does any harm.
    """
    import ctypes  # here, not at the top: it is seldom needed, and `status` starts at once

    # By this name its numbers have 64 bits everywhere.
    punch = getattr(ctypes.CDLL(None), "fallocate64", None) if sys.platform == "linux" else None
    if punch is not None and num_bytes > 0:
        punch(fd, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(num_bytes))


def _reserve_on_macos(fd: int, num_bytes: int) -> None:
    """Reserves the space for a new, empty file; macOS can reserve only behind a file's end."""
    request = struct.pack("=Iiqqq", _F_ALLOCATEALL, _F_PEOFPOSMODE, 0, num_bytes, 0)
    try:
        fcntl.fcntl(fd, _F_PREALLOCATE, request)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        _warn_of_no_reservation()


@functools.cache  # once
def _warn_of_no_reservation() -> None:
    _log.warning(
        "This file system reserves no space for a recording, so a disk that others fill up may stop the run. "
        "It goes on then from its last checkpoint."
    )
