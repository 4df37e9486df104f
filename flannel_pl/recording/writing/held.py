"""The folders that this process keeps from others: whatever is about to write there asks if it still does.

A process may be frozen (SIGSTOP, a suspended machine) or cut off from its disk for so long that another takes
its lock over. When it wakes up it must not write on. So the holder of a lock is entered here, and the few
places where something becomes visible to others (a commit, a name, a removal) ask.
"""

import os
from pathlib import Path
from typing import Protocol


class Holder(Protocol):
    """Who holds a lock."""

    @property
    def folder(self) -> Path:
        """What is kept from others, an absolute path; everything below it too."""

    def check(self, *, look: bool) -> None:
        """Raises a RunError if the lock is lost; with `look`, by what the lock file says at this moment."""

    def leave_to_parent(self) -> None:
        """Has to be called in a child that was forked while it is held: the lock is its parent's."""


_holders: list[Holder] = []


def _forked() -> None:
    """Lets a forked child hold nothing; it would wait for ever for a look that the parent's thread was in."""
    for holder in _holders:
        holder.leave_to_parent()
    _holders.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def enter(holder: Holder) -> None:
    """Lets `holder` be asked from now on."""
    _holders.append(holder)


def leave(holder: Holder) -> None:
    """Lets `holder` not be asked any more."""
    if holder in _holders:
        _holders.remove(holder)


def check_held(path: Path, *, look: bool = True) -> None:
    """Refuses to go on if a lock of this process over `path` has been taken over by another process.

    Args:
        path: What is about to be written or removed.
        look: Whether to look at the lock file, which takes as long as opening a file does; otherwise only
            if its holder has not done so for two signs of life.

    Raises:
        RunError: Says who has it now.
    """
    if _holders:
        path = path.absolute()
    for holder in tuple(_holders):
        if path.is_relative_to(holder.folder):
            holder.check(look=look)
