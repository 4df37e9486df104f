"""Locks where the kernel has none, or keeps them to one host; with real processes, and clocks that differ."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flannel_pl.errors import RunError, UserError
from flannel_pl.recording.writing import lock_file
from flannel_pl.recording.writing.disk import write_file
from flannel_pl.recording.writing.held import check_held
from flannel_pl.recording.writing.journal import Journal
from flannel_pl.recording.writing.lock import Lock
from flannel_pl.recording.writing.lock_file import HolderWords
from tests.recording.recording_samples import journal_of, make_entry, make_writer, write_rows

BEAT_S, SILENT_S = 0.05, 0.4

REFUSALS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EACCES, errno.EIO, errno.EPERM]

HOLDER = f"""
import errno, fcntl, os, sys, time
from pathlib import Path
from flannel_pl.errors import RunError
from flannel_pl.recording.writing.disk import write_file
from flannel_pl.recording.writing.lock import Lock
def flock(fd, operation):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
fcntl.flock = flock
folder = Path(sys.argv[1])
Lock(folder / "lock", what="the thing", beat_s={BEAT_S}, silent_s={SILENT_S}).acquire()
print("held", flush=True)
for _ in sys.stdin:
    try:
        write_file(folder / "data", b"the first holder's")
    except RunError as error:
        print(error)
        sys.exit(1)
"""


def a_lock(folder: Path) -> Lock:
    return Lock(folder / "lock", what="the thing", beat_s=BEAT_S, silent_s=SILENT_S)


def a_file_of(host: str, path: Path, *, age_s: float) -> None:
    """Makes the lock file of a holder on another host, of an older version of this package."""
    path.write_text(json.dumps({"host": host, "pid": 7, "since": "2026-01-01 00:00:00"}))
    os.utime(path, (time.time() - age_s,) * 2)


@pytest.fixture(params=["no locks", "locks of this host only", "no locks and no links"])
def shared_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that tells one host nothing of another's locks."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EPERM, "not here")

    local_locks = request.param == "locks of this host only"
    monkeypatch.setattr(fcntl, "flock", (lambda fd, operation: None) if local_locks else refuse)
    if local_locks:  # each lock is of another host, all of which find the kernel's free
        numbers = iter(range(10**6))
        monkeypatch.setattr(socket, "gethostname", lambda: f"host-{next(numbers)}")
    if "no links" in request.param:
        monkeypatch.setattr(os, "link", refuse)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def starts(number: int, folder: Path) -> tuple[list[Lock], list[Exception]]:
    """Starts as many holders in one moment as it can; returns those that got in, and why others did not."""
    barrier, won, refused = threading.Barrier(number), list[Lock](), list[Exception]()

    def start() -> None:
        lock = a_lock(folder)
        barrier.wait()
        try:
            lock.acquire()
        except Exception as error:
            refused.append(error)
        else:
            won.append(lock)

    threads = [threading.Thread(target=start) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won, refused


@pytest.fixture
def many_switches() -> Iterator[None]:
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before_s)


@pytest.mark.parametrize("number", REFUSALS, ids=lambda number: errno.errorcode[number])
def test_where_flock_is_refused_a_lock_is_a_lock(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = a_lock(tmp_path)
    assert lock.acquire() is None
    with pytest.raises(UserError, match=rf"the thing is in use by process {os.getpid()} on .* since 20"):
        a_lock(tmp_path).acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []
    again = a_lock(tmp_path)
    assert again.acquire() is None
    again.release()


@pytest.mark.usefixtures("shared_folder", "many_switches")
@pytest.mark.parametrize("dead", [False, True], ids=["free", "its holder died"])
def test_of_many_starts_at_one_moment_exactly_one_gets_in(dead: bool, tmp_path: Path) -> None:
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        if dead:
            a_file_of("far-away", folder / "lock", age_s=60)
        won, refused = starts(30, folder)
        assert len(won) == 1
        assert {type(error) for error in refused} == {UserError}
        won[0].check(look=True)
        won[0].release()
        assert list(folder.iterdir()) == []


def test_a_killed_holder_is_taken_for_dead_after_its_signs_of_life_stopped(
    tmp_path: Path, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse_lock)
    with pytest.raises(UserError, match=f"process {holder.pid}"):
        a_lock(tmp_path).acquire(wait_s=2 * SILENT_S)  # it lives, so that waiting helps nobody
    holder.kill()
    holder.wait()
    lock, began_s = a_lock(tmp_path), time.monotonic()
    note = lock.acquire(wait_s=10)
    assert time.monotonic() - began_s >= SILENT_S - 2 * BEAT_S
    assert f"process {holder.pid}" in (note or "")
    lock.release()


def refuse_lock(fd: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, "no locks available")


def test_a_holder_that_wakes_up_beside_its_successor_ends_and_writes_nothing(
    tmp_path: Path, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse_lock)
    holder.send_signal(signal.SIGSTOP)
    lock = a_lock(tmp_path)
    lock.acquire(wait_s=10)
    write_file(tmp_path / "data", b"the successor's")
    holder.send_signal(signal.SIGCONT)
    said, _ = holder.communicate("write\n", timeout=10)
    assert re.fullmatch(
        rf"the thing was taken over by process {os.getpid()} on .* since 20.*, after this process had given "
        r"no sign of life for \d+ s \(stopped, suspended, or cut off from the disk\)\. So it ends here and "
        r"writes nothing more; `flannel-pl status` shows how the other one gets on\.\n",
        said,
    )
    assert (tmp_path / "data").read_bytes() == b"the successor's"
    lock.check(look=True)
    lock.release()
    assert {path.name for path in tmp_path.iterdir()} <= {"data", "data.partial"}


def test_a_holder_that_wakes_up_when_its_successor_is_done_ends_too(
    tmp_path: Path, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse_lock)
    holder.send_signal(signal.SIGSTOP)
    lock = a_lock(tmp_path)
    lock.acquire(wait_s=10)
    write_file(tmp_path / "data", b"the successor's")
    lock.release()
    holder.send_signal(signal.SIGCONT)
    said, _ = holder.communicate("write\n", timeout=10)
    assert re.fullmatch(
        r".*lock is not there any more, after this process had given no sign of life for \d+ s \(stopped, "
        r"suspended, or cut off from the disk\), so another process may have taken over the thing and be "
        r"done with it\. So it ends here and writes nothing more; start again, which goes on with what is "
        r"left\.\n",
        said,
    )
    assert (tmp_path / "data").read_bytes() == b"the successor's"
    assert {path.name for path in tmp_path.iterdir()} <= {"data", "data.partial"}


@pytest.mark.parametrize("ahead_s", [-3600.0, 40.0, 3600.0])
def test_no_hosts_clock_decides_whether_a_holder_lives(
    ahead_s: float, tmp_path: Path, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse_lock)
    now_s = time.time
    monkeypatch.setattr(time, "time", lambda: now_s() + ahead_s)
    with pytest.raises(UserError, match=f"process {holder.pid}"):
        a_lock(tmp_path).acquire()
    # File systems that take every host's word for the time, e.g. Lustre.
    monkeypatch.setattr(
        lock_file.Candidate, "now_ns", lambda candidate: int((now_s() + ahead_s) * 1e9), raising=True
    )
    with pytest.raises(UserError, match=f"process {holder.pid}"):
        a_lock(tmp_path).acquire()


@pytest.mark.parametrize(("age_s", "dead"), [(0.0, False), (60.0, True), (-3600.0, True)])
def test_a_silent_holder_on_another_host_is_watched_before_it_is_taken_for_dead(
    age_s: float, dead: bool, tmp_path: Path
) -> None:
    a_file_of("far-away", tmp_path / "lock", age_s=age_s)
    lock, began_s = a_lock(tmp_path), time.monotonic()
    if dead:
        assert "process 7 on far-away" in (lock.acquire() or "")
        assert time.monotonic() - began_s > 2 * BEAT_S
        lock.release()
    else:
        with pytest.raises(UserError, match="process 7 on far-away"):
            lock.acquire()


def test_a_sign_of_life_in_the_last_moment_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_file_of("far-away", tmp_path / "lock", age_s=60)
    link = os.link

    def beat_and_link(source: Path, target: Path) -> None:
        if "heir" in target.name:
            os.utime(tmp_path / "lock")
        link(source, target)

    monkeypatch.setattr(os, "link", beat_and_link)
    before = (tmp_path / "lock").read_bytes()
    with pytest.raises(UserError, match="process 7 on far-away"):
        a_lock(tmp_path).acquire()
    assert (tmp_path / "lock").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kernel", [True, False])
def test_an_heir_that_died_over_it_has_heirs_too(
    kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setattr(fcntl, "flock", refuse_lock)
    path = tmp_path / "lock"
    a_file_of(socket.gethostname() if kernel else "far-away", path, age_s=60)
    for number in range(3):  # each dies after it has become the heir of the one before it
        words = HolderWords(socket.gethostname(), 7, "2026-01-01 00:00:00", f"{number:016x}")
        heir = lock_file.Candidate(path, words)
        before = lock_file.look(path)
        assert before is not None
        assert heir.claim(f"{number - 1:016x}" if number else before.token)
        os.close(heir.fd)
    for claim in tmp_path.glob("*.partial"):
        os.utime(claim, (time.time() - 60,) * 2)
    lock = a_lock(tmp_path)
    assert "process 7" in (lock.acquire() or "")
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kernel", [True, False])
def test_a_holder_that_died_while_it_gave_its_lock_back_has_an_heir(
    kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setattr(fcntl, "flock", refuse_lock)
    path = tmp_path / "lock"
    words = HolderWords(socket.gethostname(), 7, "2026-01-01 00:00:00", "a" * 16)
    holder = lock_file.Candidate(path, words)
    assert holder.take()
    holder.discard()
    assert lock_file.claim(
        path, words.token, words=words, like=path
    )  # so that nobody takes it over meanwhile
    os.close(holder.fd)
    for left in tmp_path.iterdir():
        os.utime(left, (time.time() - 60,) * 2)
    lock = a_lock(tmp_path)
    assert "process 7" in (lock.acquire() or "")
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_was_removed_by_hand_comes_back(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock", what="the thing")
    lock.acquire()
    before = (tmp_path / "lock").read_bytes()
    (tmp_path / "lock").unlink()
    lock.check(look=True)
    assert (tmp_path / "lock").read_bytes() == before
    with pytest.raises(UserError, match="in use by process"):
        a_lock(tmp_path).acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_an_orphan_makes_no_folder_for_its_lock(tmp_path: Path) -> None:
    (tmp_path / "removed").mkdir()
    lock = a_lock(tmp_path / "removed")
    lock.acquire()
    (tmp_path / "removed" / "lock").unlink()
    (tmp_path / "removed").rmdir()
    with pytest.raises(RunError, match=r"removed was removed or renamed while .* was in use"):
        lock.check(look=True)
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_cannot_see_its_lock_ends_once_others_may_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = a_lock(tmp_path)
    lock.acquire()
    with monkeypatch.context() as patch:

        def look(path: Path) -> None:
            raise OSError(errno.EIO, "away")

        patch.setattr("flannel_pl.recording.writing.lock.look", look)
        lock.check(look=True)
        time.sleep(SILENT_S + 0.1)
        with pytest.raises(
            RunError, match=r"lock could not be looked at for 1 s|for 0 s, so another process"
        ):
            lock.check(look=False)
    lock.check(look=True)
    lock.release()


def test_what_killed_starts_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    old, new = f"lock.{'a' * 16}.partial", f"lock.{'b' * 16}-heir.partial"
    others = ["lock.txt", "lock.partial", "lock.mine.partial", f"block.{'a' * 16}.partial"]
    for name in (old, new, *others):
        a_file_of("here", tmp_path / name, age_s=0 if name == new else 60)
    lock = a_lock(tmp_path)
    lock.acquire()
    lock.release()
    assert {path.name for path in tmp_path.iterdir()} == {new, *others}


def steal(path: Path) -> None:
    """Does what a successor on another host does."""
    words = HolderWords("far-away", 7, "2026-01-01 00:00:00", "f" * 16)
    candidate = lock_file.Candidate(path, words)
    seen = lock_file.look(path)
    assert seen is not None
    assert candidate.take_over(seen)
    candidate.discard()
    os.close(candidate.fd)


@pytest.fixture
def stolen(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A held lock over `tmp_path`, and a function that lets another host take it over."""
    lock = a_lock(tmp_path)
    lock.acquire()
    yield lambda: steal(tmp_path / "lock")
    lock.release()
    words = json.loads((tmp_path / "lock").read_text())
    assert words["host"] == "far-away"


def test_a_writer_whose_run_was_taken_over_ends_at_once_and_commits_nothing(
    tmp_path: Path, stolen: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    writer = make_writer(tmp_path / "run_0")
    write_rows(writer, range(3))
    deadline_s = time.monotonic() + 10
    while journal_of(tmp_path / "run_0").rows_written < 3:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    stolen()
    names = sorted(path.name for path in (tmp_path / "run_0").iterdir())
    journal = (tmp_path / "run_0" / "journal").read_bytes()
    time.sleep(1.0)  # twice as long as until the journal is written
    for action in (writer.raise_if_failed, writer.acquire, writer.finish):
        with pytest.raises(RunError, match="the thing was taken over by process 7 on far-away"):
            action()
    assert sorted(path.name for path in (tmp_path / "run_0").iterdir()) == names
    assert (tmp_path / "run_0" / "journal").read_bytes() == journal
    assert not caplog.records


def test_nothing_of_a_folder_that_was_taken_over_is_written_or_removed(
    tmp_path: Path, stolen: Callable[[], None]
) -> None:
    write_file(tmp_path / "before", b"x")
    stolen()
    (tmp_path / "another.partial").write_bytes(b"the successor's")
    for action in (
        lambda: write_file(tmp_path / "another", b"x"),
        lambda: Journal(tmp_path / "journal").write(make_entry()),
        lambda: make_writer(tmp_path / "run_1"),
    ):
        with pytest.raises(RunError, match="the thing was taken over by process 7 on far-away"):
            action()
    assert {path.name for path in tmp_path.iterdir()} == {"before", "another.partial", "lock"}
    write_file(tmp_path.parent / "elsewhere", b"x")
    (tmp_path.parent / "elsewhere").unlink()


def test_a_forked_child_does_not_wait_for_a_look_of_its_parents(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock", what="the thing")
    lock.acquire()
    with lock._looking, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: this process has threads
        child = os.fork()
        if child == 0:
            check_held(tmp_path / "journal")
            os._exit(0)
    deadline_s = time.monotonic() + 10
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    lock.release()
    assert ended == (child, 0)
