"""How long ago something gave a sign of life, seen from a host whose clock may be another one's.

At the first look only the clocks can tell. From then on it counts when a sign was seen to be a new one, so
that who watches is not misled for longer than until the next.
"""

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Sign:
    time_s: float
    seen_s: float
    """When it was first seen, by a clock that nobody sets."""

    is_new: bool
    """Whether an older one was seen before it."""


_last: dict[Path, _Sign] = {}


def silence_s(path: Path, time_s: float) -> float:
    """Returns how many seconds ago there was a sign of life.

    Args:
        path: The file that shows it.
        time_s: When that was, by the clock of another host, Unix time in seconds.
    """
    now_s, last = time.monotonic(), _last.get(path)
    if last is None or last.time_s != time_s:
        _last[path] = last = _Sign(time_s, now_s, is_new=last is not None and last.time_s < time_s)
    watched_s = now_s - last.seen_s
    return watched_s if last.is_new else max(watched_s, time.time() - time_s)
