"""One process at a time: a lock file that a dying process cannot leave locked.

The file says who the holder is, and the holder touches it every few seconds. Where the file system has locks
(`flock`), the kernel keeps it as well, and lets go when its holder ends in whatever way: then the next one
need not wait. Where it has none, or does not pass them on to other hosts, a holder that has given no sign of
life for a while is taken for dead. No host's clock decides that: ages are by the file system's clock, and
whoever takes over has watched the file itself for some signs of life that did not come.

A holder that was only frozen finds at its next sign of life, or before its next commit (`held.py`), that the
lock is another's, and ends. So does one whose folder was removed: nothing of it is made anew.
"""

import contextlib
import os
import secrets
import socket
import threading
import time
from pathlib import Path

from flannel_pl.errors import RunError, UserError
from flannel_pl.recording.writing import held
from flannel_pl.recording.writing.disk import explained
from flannel_pl.recording.writing.lock_file import (
    FIRST,
    Candidate,
    HolderWords,
    Seen,
    give_lock_back,
    heir_of,
    is_of,
    kernel_lock_of,
    leftovers,
    look,
)
from flannel_pl.recording.writing.lock_watch import Watch, now_s

BEAT_S = 5.0
SILENT_S = 30.0
"""A holder that the kernel does not vouch for is taken for dead if it was silent for so long."""

_HOLDER_BYTES = 4096  # what the few words about a holder take on a disk


class Lock:
    """A lock file at `path`, taken with `acquire` and given back with `release`.

    While it is held, `held.check_held` refuses to write below its folder once it has been taken over.

    Args:
        path: The file; its folder must exist. It is removed by `release`.
        what: What is being kept from others, for the message, e.g. "the experiment runs/flannel3".
        beat_s: Seconds between signs of life.
        silent_s: Seconds after which a holder that gave none is taken for dead.
        has_status: Whether `flannel-pl status` knows the folder; a script's recording it does not.
    """

    def __init__(
        self,
        path: Path,
        *,
        what: str,
        beat_s: float = BEAT_S,
        silent_s: float = SILENT_S,
        has_status: bool = True,
    ) -> None:
        self.path = path
        self.folder = path.absolute().parent
        self.what = what
        self._has_status = has_status
        self._beat_s, self._silent_s = beat_s, silent_s
        self._put_back_s = silent_s - 2 * beat_s
        """Up to this silence nobody has had the lock meanwhile, however coarse the times of files are."""
        self._fd = -1
        self._folder_inode = 0
        self._words = HolderWords("", 0, "")
        self._lost: str | None = None
        self._beaten_s = 0.0
        self._looking = threading.Lock()
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, *, wait_s: float = 0.0) -> str | None:
        """Takes the lock.

        Args:
            wait_s: How long to wait for a holder that is about to let go. A holder that seems dead is
                watched for some seconds in any case.

        Returns:
            None; or, if an earlier holder died without giving it back, a sentence about that.

        Raises:
            UserError: If another process holds it.
            RunError: If the disk refuses the file.
        """
        with explained(self.path, need_bytes=_HOLDER_BYTES):
            last = self._acquire(wait_s)
        held.enter(self)
        self._released.clear()
        self._thread = threading.Thread(target=self._beat, name="flannel-lock", daemon=True)
        self._thread.start()
        return None if last is None else f"the last holder of {self.what}, {last}, ended without a word"

    def release(self) -> None:
        """Gives the lock back; does nothing if it is not held."""
        if self._fd < 0:
            return
        held.leave(self)
        self._released.set()
        if self._thread is not None:
            self._thread.join(timeout=BEAT_S)  # a file system that hangs must not hold us up
        # While still locked, so that nobody else can have it yet. One that stays keeps nobody out for long.
        with contextlib.suppress(OSError):
            give_lock_back(self.path, self._words)
        os.close(self._fd)
        self._fd = -1

    def leave_to_parent(self) -> None:
        """Lets a forked child have no part in it, which may outlive its parent, and would keep it locked."""
        os.close(self._fd)
        self._fd = -1

    def check(self, *, look: bool) -> None:
        """Refuses to go on if another process has taken the lock over.

        Args:
            look: Whether to look at the lock file; if not, that is done only if two signs of life are due.

        Raises:
            RunError: Says who has it now; also if nobody can say, and others had the time to take it over.
        """
        if self._fd < 0:
            return
        if look or now_s() - self._beaten_s > 2 * self._beat_s:
            self._give_sign()
        if self._lost is not None:
            raise RunError(self._lost)
        if (silent_s := now_s() - self._beaten_s) > self._silent_s:
            raise RunError(
                f"{self.path} could not be looked at for {silent_s:.0f} s, so another process may have taken "
                f"over {self.what}, and nothing more is written. Check the disk, then start again."
            )

    def _acquire(self, wait_s: float) -> HolderWords | None:
        """Returns what the file said of an earlier holder that has died."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime())
        words = HolderWords(socket.gethostname(), os.getpid(), since, secrets.token_hex(8))
        candidate = Candidate(self.path, words)
        try:
            last = self._contend(candidate, wait_s)
            self._beaten_s, self._folder_inode = now_s(), self.folder.stat().st_ino
            for left in leftovers(self.path, older_than_ns=candidate.now_ns() - int(self._silent_s * 1e9)):
                left.unlink(missing_ok=True)
        except BaseException:
            candidate.give_up()
            raise
        candidate.discard()
        self._fd, self._words, self._lost = candidate.fd, candidate.words, None
        return last

    def _contend(self, candidate: Candidate, wait_s: float) -> HolderWords | None:
        """Takes the lock; returns what is known of a dead holder from whom it was taken over."""
        deadline_s = time.monotonic() + wait_s
        watch = self._watch(candidate)
        while not (is_taken := candidate.take()):
            seen = look(self.path)
            if seen is None and is_taken is False:  # given back just now
                continue
            is_dead = seen is None or watch.is_dead(self.path, seen)
            if is_dead and self._inherit(seen, watch, candidate):
                return None if seen is None else seen.words
            if is_dead is False and time.monotonic() >= deadline_s:
                assert seen is not None
                raise UserError(self._in_use(seen.words))
            time.sleep(min(0.2, self._beat_s / 4))
        return None

    def _in_use(self, words: HolderWords | None) -> str:
        itself = " (this process itself)" if words is not None and words.is_this_process else ""
        instead = "look at it with `flannel-pl status`" if self._has_status else "take another folder"
        return (
            f"{self.what} is in use by {words or 'another process'}{itself}; wait for it, stop it, or "
            f"{instead}. (The lock is {self.path}.)"
        )

    def _inherit(self, seen: Seen | None, watch: Watch, candidate: Candidate) -> bool:
        """Takes a dead holder's lock over, as its only heir; or as the heir of an heir that died over it."""
        token, claims = FIRST if seen is None else seen.token, list[Path]()
        while not candidate.claim(token):
            claims.append(heir_of(self.path, token))
            other = look(claims[-1])
            if other is None or not watch.is_dead(claims[-1], other):
                return False
            # Who died while giving the lock back is its own heir; the heir of that has another name.
            token = other.token if other.token != token else f"{token}-heir"
        claims.append(heir_of(self.path, token))
        is_ours = False
        try:
            is_ours = candidate.take_over(seen)
        finally:
            for path in claims if is_ours else claims[-1:]:
                path.unlink(missing_ok=True)
        return is_ours

    def _watch(self, candidate: Candidate) -> Watch:
        return Watch(self.path, candidate.now_ns, beat_s=self._beat_s, silent_s=self._silent_s)

    def _beat(self) -> None:
        while not self._released.wait(self._beat_s) and self._lost is None:
            self._give_sign()

    def _give_sign(self) -> None:
        """Touches the lock file if it is still ours; notes if it is another's."""
        with self._looking, contextlib.suppress(OSError):  # out of reach: seen to at the next sign, or write
            looked_s = now_s()  # before: it may be frozen at any moment from here on
            seen, silent_s = look(self.path), looked_s - self._beaten_s
            if seen is None and self._is_folder_gone():
                self._lost = (
                    f"{self.folder} was removed or renamed while {self.what} was in use. So it ends here, "
                    "and nothing of it is made anew; bring the folder back to go on, or start again from "
                    "the beginning."
                )
            elif seen is None and silent_s < self._put_back_s:
                self._put_back()
            elif seen is None:
                self._lost = (
                    f"{self.path} is not there any more, after this process had given no sign of life for "
                    f"{silent_s:.0f} s (stopped, suspended, or cut off from the disk), so another process "
                    f"may have taken over {self.what} and be done with it. So it ends here and writes "
                    "nothing more; start again, which goes on with what is left."
                )
            elif is_of(seen, self._words):
                os.utime(self._fd)
                self._beaten_s = looked_s
            elif self._lost is None:
                self._lost = (
                    f"{self.what} was taken over by {seen.words or 'another process'}, after this process "
                    f"had given no sign of life for {silent_s:.0f} s (stopped, suspended, or cut off from "
                    "the disk). So it ends here and writes nothing more"
                    + ("; `flannel-pl status` shows how the other one gets on." if self._has_status else ".")
                )

    def _is_folder_gone(self) -> bool:
        try:
            return self.folder.stat().st_ino != self._folder_inode
        except FileNotFoundError:
            return True

    def _put_back(self) -> None:
        """Makes the lock file once more, which somebody has removed by hand."""
        candidate = Candidate(self.path, self._words)
        try:
            is_ours = candidate.take()
            if is_ours is None:  # no hard links here
                is_ours = self._inherit(None, self._watch(candidate), candidate)
        except OSError:
            candidate.give_up()
            raise
        if is_ours:
            candidate.discard()
            os.close(self._fd)
            self._fd, self._beaten_s = candidate.fd, now_s()
        else:
            candidate.give_up()


def is_held(path: Path) -> bool:
    """Tells whether a lock seems to be held; changes nothing, so that it may be wrong a moment later."""
    try:
        seen = look(path)
        if seen is None:
            return False
        is_free = kernel_lock_of(path, seen)
    except OSError:
        return True
    if is_free is None or seen.words is None or seen.words.host != socket.gethostname():
        return time.time() - seen.beat_ns / 1e9 < SILENT_S
    return not is_free
