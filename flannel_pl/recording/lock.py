"""One process at a time: a lock file that a dying process cannot leave locked.

The lock itself is the kernel's (`flock`), which lets go when its holder ends in whatever way. The file says
who the holder is. On a shared folder whose file system does not pass locks on to other hosts, the age of the
file tells: the holder touches it every few seconds.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from flannel_pl.errors import UserError
from flannel_pl.recording.disk import explained, write_at
from flannel_pl.small_files import read_small

BEAT_S = 5.0
SILENT_S = 30.0
"""A holder on another host that has not touched its lock for so long is taken for dead."""

_HOLDER_BYTES = 4096  # what the few words about a holder take on a disk


class Lock:
    """A lock file at `path`, taken with `acquire` and given back with `release`.

    Args:
        path: The file; its folder must exist. It is removed by `release`.
        what: What is being kept from others, for the message, e.g. "the experiment runs/flannel3".
    """

    def __init__(self, path: Path, *, what: str) -> None:
        self.path = path
        self.what = what
        self._fd = -1
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, *, wait_s: float = 0.0) -> str | None:
        """Takes the lock.

        Args:
            wait_s: How long to wait for a holder that is about to let go.

        Returns:
            None; or, if an earlier holder died without giving it back, a sentence about that.

        Raises:
            UserError: If another process holds it.
            RunError: If the disk refuses the file.
        """
        with explained(self.path, need_bytes=_HOLDER_BYTES):
            return self._acquire(wait_s)

    def _acquire(self, wait_s: float) -> str | None:
        deadline_s = time.monotonic() + wait_s
        while not self._try():
            if time.monotonic() >= deadline_s:
                raise UserError(
                    f"{self.what} is in use by {_describe(self._holder())}; wait for it, stop it, or look at "
                    f"it with `flannel-pl status`. (The lock is {self.path}.)"
                )
            time.sleep(0.2)
        last = self._holder()
        note = (
            None
            if last is None
            else f"the last holder of {self.what}, {_describe(last)}, ended without a word"
        )
        try:
            self._write_holder()
        except OSError:
            self.release()
            raise
        self._released.clear()
        self._thread = threading.Thread(target=self._beat, name="flannel-lock", daemon=True)
        self._thread.start()
        return note

    def release(self) -> None:
        """Gives the lock back; does nothing if it is not held."""
        if self._fd >= 0:
            self._released.set()
            if self._thread is not None:
                self._thread.join(timeout=BEAT_S)  # a file system that hangs must not hold us up
            # While still locked, so that nobody else can have it yet. One that stays keeps nobody out.
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self._fd)
            self._fd = -1

    def _try(self) -> bool:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file may have been removed by its last holder between our open and our lock.
            if os.fstat(fd).st_ino != self.path.stat().st_ino or self._held_elsewhere():
                os.close(fd)
                return False
        except (BlockingIOError, FileNotFoundError):
            os.close(fd)
            return False
        self._fd = fd
        return True

    def _held_elsewhere(self) -> bool:
        """Whether a process on another host holds the lock without the kernel here knowing."""
        holder = self._holder()
        silent_s = time.time() - self.path.stat().st_mtime
        return holder is not None and holder["host"] != socket.gethostname() and silent_s < SILENT_S

    def _holder(self) -> dict[str, Any] | None:
        try:
            holder: dict[str, Any] = json.loads(read_small(self.path, max_bytes=_HOLDER_BYTES))
            return {"host": str(holder["host"]), "pid": int(holder["pid"]), "since": str(holder["since"])}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _write_holder(self) -> None:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime())
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        os.ftruncate(self._fd, 0)
        write_at(self._fd, json.dumps(holder).encode() + b"\n", 0)

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            try:
                os.utime(self.path)
            except OSError:
                return  # the folder is gone; the next write will say so


def _describe(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
