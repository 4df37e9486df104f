"""Whether the holder of a lock is dead: by the kernel's word where it has one, else by watching its file."""

import socket
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flannel_pl.recording.writing.lock_file import Seen, kernel_lock_of, look

_WATCHED_BEATS = 2.5
"""Even a lock that seems silent for long has to miss that many signs of life under the eyes of its heir."""


@dataclass
class _File:
    """What was seen of a file so far."""

    last: Seen | None = None
    looked_s: float = 0.0
    silent_s: float = 0.0
    """How long it was watched without any change."""

    has_beaten: bool = False
    """Whether it changed while it was watched."""


class Watch:
    """Watches a lock file, and the files of those who are about to inherit it.

    Args:
        path: The lock file.
        time_ns: Tells the time by the file system's clock.
        beat_s: Seconds between a holder's signs of life.
        silent_s: Seconds after which a holder that gave none is dead.
    """

    def __init__(self, path: Path, time_ns: Callable[[], int], *, beat_s: float, silent_s: float) -> None:
        self._path, self._time_ns = path, time_ns
        self._beat_s, self._silent_s = beat_s, silent_s
        self._files: dict[Path, _File] = defaultdict(_File)

    def is_dead(self, path: Path, seen: Seen) -> bool | None:
        """Tells whether whoever made a file has died; to be asked more often than signs of life come.

        Args:
            path: The lock file, or one beside it.
            seen: What was seen of it just now.

        Returns:
            None if that takes watching it for longer, however long that is.
        """
        file, words = self._files[path], seen.words
        self._note(file, seen)
        is_free = kernel_lock_of(path, seen)
        if is_free is False:
            return False if look(path) == seen else None
        if is_free and words is None and path == self._path:  # what a power cut left
            return True
        if is_free and words is not None and words.kernel and words.host == socket.gethostname():
            return True
        age_s = (self._time_ns() - seen.beat_ns) / 1e9
        if file.silent_s >= self._silent_s:
            return True
        if file.silent_s >= _WATCHED_BEATS * self._beat_s and age_s >= self._silent_s:
            return True
        # An age that cannot be: the file system has no clock of its own, and takes every host's word.
        is_doubtful = age_s >= self._silent_s or age_s < -self._beat_s
        return None if is_doubtful and not file.has_beaten else False

    def _note(self, file: _File, seen: Seen) -> None:
        before_s, file.looked_s = file.looked_s, now_s()
        if seen == file.last:
            # No more than a beat: this process, too, may have been frozen since its last look.
            file.silent_s += min(file.looked_s - before_s, self._beat_s)
        else:
            file.has_beaten = file.last is not None
            file.last, file.silent_s = seen, 0.0


def now_s() -> float:
    """Returns a clock that nobody sets and that goes on while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)  # Linux
    return time.monotonic() if clock is None else time.clock_gettime(clock)
