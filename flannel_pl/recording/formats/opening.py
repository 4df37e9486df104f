"""Files that are open for reading: more of them than the system allows a process to have open at once.

Each is opened when it is read. Those read last stay open; the others are closed, and opened again when they
are needed, if they still are the same files. So it is in another process too, forked or sent a copy.
"""

import contextlib
import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flannel_pl.errors import RunError, Unreachable
from flannel_pl.paths import is_partial

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

MAX_OPEN = 64
"""Files that stay open although nobody reads them at the moment, unless fewer are allowed."""

ANOTHER_KIND = (errno.EISDIR, errno.EINVAL, errno.EFBIG)
"""What is answered where something else has a file's name: a folder, a pipe, or far too much."""

_TOO_MANY = (errno.EMFILE, errno.ENFILE)

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # Windows has the second


@dataclass
class _Open:
    fd: int
    num_users: int = 0


# Reentrant, since a descriptor may be thrown away, and closed for that, at any moment.
_lock = threading.RLock()
_open: OrderedDict[int, _Open] = OrderedDict()  # by id of the descriptor; those used last at the end

Identity = tuple[int, int, int]
"""What tells a file from all others that get its name, see `Descriptor.identity`."""


class Descriptor:
    """A file to read from, by any number of threads. Close it.

    Args:
        path: The file. Once it was opened, no other that gets its name is taken for it. Of a relative one
            the working folder counts in which this is made, whatever it is later.
        identity: Of the file that is meant, if it was opened before.
    """

    def __init__(self, path: Path, *, identity: Identity | None = None) -> None:
        self.path = path
        self.absolute = path.absolute()
        self._closed = False
        self._identity = identity

    def identity(self) -> Identity:
        """Returns what tells this file, also on another host, from those that get its name later.

        Raises:
            OSError: If it cannot be opened.
            RunError: If it is another file by now.
            ValueError: If this was closed.
        """
        with self.opened():
            assert self._identity is not None
            return self._identity

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """Yields what the system calls the open file; it stays open in the block at least.

        Raises:
            OSError: If it cannot be opened.
            RunError: If it is another file by now, or was written to; also while the block read it.
            ValueError: If this was closed.
        """
        with _lock:
            if self._closed:
                raise ValueError(f"{self.path} is closed")
            if id(self) not in _open:
                _open[id(self)] = _Open(self._open_file())
            entry = _open[id(self)]
            entry.num_users += 1
            _open.move_to_end(id(self))
        try:
            yield entry.fd
            # After reading: a file is dated before its bytes change, and the descriptor may have been closed
            # by others and be another file's by now.
            if self._identity != _identity(self.path, os.fstat(entry.fd)):
                raise replaced(self.path)
        finally:
            with _lock:
                entry.num_users -= 1
                if self._closed:
                    self.close()
                _close_idle(keep=_max_idle())

    def read(self, num_bytes: int, *, offset: int) -> bytes:
        """Returns bytes of the file; fewer than asked for where it ends.

        Raises:
            OSError: If it cannot be opened or read.
            RunError: If it is another file by now.
            ValueError: If this was closed.
        """
        data = bytearray(num_bytes)
        done, view = 0, memoryview(data)
        with self.opened() as fd:
            while done < num_bytes and (num_read := read_at(fd, view[done:], offset + done)):
                done += num_read
        return bytes(view[:done])

    def close(self) -> None:
        """Closes the file, as soon as nobody reads it any more."""
        with _lock:
            self._closed = True
            entry = _open.get(id(self))
            if entry is not None and entry.num_users == 0:
                del _open[id(self)]
                os.close(entry.fd)

    def __del__(self) -> None:
        self.close()

    def _open_file(self) -> int:
        try:
            fd = os.open(self.absolute, _FLAGS)
        except OSError as error:
            if error.errno not in _TOO_MANY:
                raise
            _close_idle(keep=0)
            fd = os.open(self.absolute, _FLAGS)
        there = os.fstat(fd)
        if not stat.S_ISREG(there.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is no regular file", str(self.path))
        identity = _identity(self.path, there)
        if self._identity not in (None, identity):
            os.close(fd)
            raise replaced(self.path)
        self._identity = identity
        return fd


def _identity(path: Path, there: os.stat_result) -> Identity:
    if is_partial(path):  # still written to
        return there.st_ino, 0, 0
    # The number of an inode is given to another file once its own is deleted. What a device is called differs
    # between the hosts of a cluster, so it does not count.
    return there.st_ino, there.st_size, there.st_mtime_ns


def replaced(path: Path) -> RunError:
    """Returns what to tell of a file that is not the one any more that was opened."""
    return RunError(f"{path} is another file than the one that was opened, or was written to. Open it again.")


def _forked() -> None:
    """Lets a forked child wait for no thread of its parent's: it has none of them."""
    global _lock
    _lock = threading.RLock()
    for entry in _open.values():
        entry.num_users = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def read_at(fd: int, view: memoryview, offset: int) -> int:
    """Reads into `view` from `offset` on; returns how many bytes, perhaps fewer than wanted, 0 at the end."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    if hasattr(os, "pread"):  # macOS before 11
        piece = os.pread(fd, len(view), offset)
    else:  # Windows
        with _lock:
            os.lseek(fd, offset, os.SEEK_SET)
            piece = os.read(fd, len(view))
    view[: len(piece)] = piece
    return len(piece)


def is_there(path: Path) -> bool:
    """Tells whether there is a file, for those who would do without it, or make it anew.

    Raises:
        Unreachable: If nobody can tell, or its name leads nowhere, as a link to a disk that is away does.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise unreachable(path, error) from error
        return False
    except OSError as error:
        raise unreachable(path, error) from error
    return True


def unreachable(path: Path, error: OSError, *, what: str = "") -> Unreachable:
    """Returns what to tell of a file that cannot be read now, though nothing says that it is damaged.

    Args:
        path: The file.
        error: What the system says.
        what: The part of it that was to be read.
    """
    if error.errno in _TOO_MANY:
        advice = "Let the process have more files open (ulimit -n), then try again."
    elif error.errno in (errno.EACCES, errno.EPERM):
        advice = "Change its permissions, then try again."
    elif error.errno in (errno.ENOENT, errno.ENOTDIR):
        advice = "Bring it back, or mount the disk that it is on."
    elif error.errno in ANOTHER_KIND:
        advice = "Bring back the file that belongs there."
    else:
        advice = "Check the disk that it is on, then try again."
    said = error.strerror or str(error)
    return Unreachable(f"Cannot read {f'{what} of ' if what else ''}{path}: {said}. {advice}")


def _max_idle() -> int:
    """Returns how many files nobody reads may stay open: a part of what a process is allowed."""
    if resource is None:
        return MAX_OPEN
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MAX_OPEN, allowed // 4) if allowed > 0 else MAX_OPEN  # a negative number is no limit


def _close_idle(*, keep: int) -> None:
    """Closes the files that nobody reads, those used longest ago first, until only so many are open."""
    for key in [key for key, entry in _open.items() if entry.num_users == 0][: max(0, len(_open) - keep)]:
        if (entry := _open.pop(key, None)) is not None:
            os.close(entry.fd)
