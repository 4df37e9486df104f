"""The steps of which taking a lock is made, each of which only one of several processes can do.

The file appears under its name with everything in it (`link`, or an exclusive `open` where a file system has
no links). Nobody removes or replaces it who has not made, in the same exclusive way, a file that is named
after its holder: that of the holder's heir. So whoever takes a lock, or takes over a dead one, has done that
alone, whether or not the file system has locks of its own.
"""

import contextlib
import json
import os
import re
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flannel_pl.paths import all_beside_lock, beside_lock
from flannel_pl.publish import fcntl
from flannel_pl.recording.writing.disk import write_at

FIRST = "first"
"""In place of a holder's token, where there is none and the file system has no links."""

_MAX_BYTES = 4096
_LEFT = re.compile(r"[0-9a-f]{16}(-heir){0,2}|first-heir")


@dataclass(frozen=True)
class HolderWords:
    """What a lock file says of its holder."""

    host: str
    pid: int
    since: str
    token: str = ""
    """The holder's own and nobody else's; an older version of this package wrote none."""

    kernel: bool = True
    """Whether the kernel keeps the lock as well."""

    def to_bytes(self) -> bytes:
        """Returns what a lock file holds."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @property
    def is_this_process(self) -> bool:
        """Whether the holder is whoever asks."""
        return (self.host, self.pid) == (socket.gethostname(), os.getpid())

    def __str__(self) -> str:
        """Returns who that is, for a message."""
        return f"process {self.pid} on {self.host} since {self.since}"


@dataclass(frozen=True)
class Seen:
    """A lock file at one moment."""

    words: HolderWords | None
    """None if it does not say, whatever it holds."""

    device: int
    inode: int
    beat_ns: int
    """Last sign of life by the file system's clock: its time of modification."""

    @property
    def token(self) -> str:
        """What its heir is named after; of a holder without a token the number of the file."""
        return self.words.token if self.words and self.words.token else f"{self.inode % 2**64:016x}"


def look(path: Path) -> Seen | None:
    """Returns what a lock file says; None if there is none.

    It is opened, not asked for by name: a network file system answers the latter from its memory.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        there, content = os.fstat(fd), os.pread(fd, _MAX_BYTES, 0)
    finally:
        os.close(fd)
    return Seen(_parse(content), there.st_dev, there.st_ino, there.st_mtime_ns)


def kernel_lock(fd: int) -> bool | None:
    """Takes the kernel's lock on an open file.

    Returns:
        Whether it was free; None if this file system has no such locks (some network file systems).
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def kernel_lock_of(path: Path, seen: Seen) -> bool | None:
    """Returns whether the kernel's lock on a lock file is free, without keeping it; None if nobody can say.

    Args:
        path: The lock file.
        seen: What was seen of it; another file by now counts as taken.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        there = os.fstat(fd)
        is_same = (there.st_dev, there.st_ino) == (seen.device, seen.inode)
        return kernel_lock(fd) if is_same else False
    finally:
        os.close(fd)


class Candidate:
    """A file of one's own beside a lock file, which is to become that file.

    Args:
        path: The lock file.
        words: Who wants the lock; whether the kernel keeps it as well is found out here.
    """

    def __init__(self, path: Path, words: HolderWords) -> None:
        self.path = path
        self.own = beside_lock(path, words.token)
        self.fd = os.open(self.own, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # Locked before it can become the lock file: nobody ever finds that unlocked.
        self.words = replace(words, kernel=kernel_lock(self.fd) is True)
        try:
            write_at(self.fd, self.words.to_bytes(), 0)
        except OSError:
            self.give_up()
            raise

    def now_ns(self) -> int:
        """Returns the time by the file system's clock, which all hosts share, and no host's own."""
        os.utime(self.fd)
        return os.fstat(self.fd).st_mtime_ns

    def take(self) -> bool | None:
        """Becomes the lock file, if there is none; returns whether it is. None: not without being an heir."""
        try:
            os.link(self.own, self.path)
        except FileExistsError:
            pass
        except OSError:
            return None
        return self.has_it()

    def take_over(self, seen: Seen | None) -> bool:
        """Becomes the lock file in place of one of which this is the only heir; returns whether it is."""
        if look(self.path) != seen:
            return False
        os.rename(self.own, self.path)  # noqa: PTH104 - looked up in `os`, so that tests can let it fail
        return self.has_it()

    def claim(self, token: str) -> bool:
        """Becomes the only heir of a holder; returns whether it is."""
        return claim(self.path, token, words=self.words, like=self.own)

    def has_it(self) -> bool:
        """Tells whether this is the lock file, by what that says."""
        # Asked afterwards, whatever a call said: over a network its answer may get lost, and the question
        # that is repeated for that finds the work done.
        return is_of(look(self.path), self.words)

    def discard(self) -> None:
        """Removes its own name, once the lock is taken."""
        with contextlib.suppress(OSError):
            self.own.unlink()

    def give_up(self) -> None:
        """Leaves nothing behind, not even the lock if it is taken."""
        with contextlib.suppress(OSError):
            give_lock_back(self.path, self.words)
        self.discard()
        os.close(self.fd)


def is_of(seen: Seen | None, words: HolderWords) -> bool:
    """Tells whether a file is of the one who gave these words."""
    return seen is not None and seen.words is not None and seen.words.token == words.token


def heir_of(path: Path, token: str) -> Path:
    """Returns the file whose maker alone may remove or replace the lock file of the holder `token`."""
    return beside_lock(path, f"{token}-heir")


def claim(path: Path, token: str, *, words: HolderWords, like: Path) -> bool:
    """Makes the file of a holder's heir, if there is none.

    Args:
        path: The lock file.
        token: The holder's.
        words: Who claims that.
        like: A file that holds these words.

    Returns:
        Whether it was made, by this call and no other.
    """
    heir = heir_of(path, token)
    try:
        os.link(like, heir)
    except FileExistsError:
        pass
    except OSError:  # no hard links here
        try:
            fd = os.open(heir, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            write_at(fd, replace(words, kernel=False).to_bytes(), 0)
        finally:
            os.close(fd)
    return is_of(look(heir), words)


def give_lock_back(path: Path, words: HolderWords) -> None:
    """Removes a lock file, if it is of the one who gave these words and has no heir."""
    if is_of(look(path), words) and claim(path, words.token, words=words, like=path):
        if is_of(look(path), words):
            path.unlink()
        heir_of(path, words.token).unlink()


def leftovers(path: Path, *, older_than_ns: int) -> list[Path]:
    """Returns what processes that were killed while they took a lock have left beside it."""
    found = []
    for middle, beside in all_beside_lock(path):
        if _LEFT.fullmatch(middle):
            seen = look(beside)
            if seen is not None and seen.beat_ns < older_than_ns:
                found.append(beside)
    return found


def _parse(content: bytes) -> HolderWords | None:
    try:
        fields = json.loads(content)
        return HolderWords(
            str(fields["host"]),
            int(fields["pid"]),
            str(fields["since"]),
            str(fields.get("token", "")),
            fields.get("kernel", True) is True,
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
