"""One process at a time, whatever happened to the one before; with real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_pl.errors import RunError, UserError
from flannel_pl.recording.writing.disk import write_file
from flannel_pl.recording.writing.lock import SILENT_S, Lock

HOLD = """
import sys, time
from pathlib import Path
from flannel_pl.recording.writing.lock import Lock
Lock(Path(sys.argv[1]), what="the thing").acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_told_who_holds_it(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(UserError, match=rf"the thing is in use by process {holder.pid} on .* since 20"):
        Lock(tmp_path / "lock", what="the thing").acquire()


def test_a_killed_holder_leaves_nothing_locked(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock = Lock(tmp_path / "lock", what="the thing")
    note = lock.acquire()
    assert note is not None
    assert f"process {holder.pid}" in note
    assert "ended without a word" in note
    lock.release()
    assert not (tmp_path / "lock").exists()


FORK = """
import os, sys, time
from pathlib import Path
from flannel_pl.recording.writing.lock import Lock
lock = Lock(Path(sys.argv[1]), what="the thing")
lock.acquire()
child = os.fork()
if child == 0:
    lock.release()
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_forked_child_that_outlives_a_killed_holder_keeps_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORK, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with pytest.raises(UserError, match=rf"in use by process {process.pid} on"):
                Lock(tmp_path / "lock", what="the thing").acquire()
            process.kill()
            process.wait()
            lock = Lock(tmp_path / "lock", what="the thing")
            assert f"process {process.pid}" in str(lock.acquire(wait_s=20))
            lock.release()
        finally:
            os.kill(child, signal.SIGKILL)


def test_waiting_for_a_holder_that_goes(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    code = f"import os, time; time.sleep(1); os.kill({holder.pid}, 9)"
    lock, began_s = Lock(tmp_path / "lock", what="the thing"), time.monotonic()
    killer = subprocess.Popen([sys.executable, "-c", code])
    lock.acquire(wait_s=20)
    assert time.monotonic() - began_s > 0.5
    lock.release()
    killer.wait()


def test_it_can_be_taken_again_after_release(weird_tmp_path: Path) -> None:
    for _ in range(3):
        lock = Lock(weird_tmp_path / "lock", what="the thing")
        assert lock.acquire() is None
        assert json.loads((weird_tmp_path / "lock").read_text())["pid"] == os.getpid()
        lock.release()
        lock.release()


@pytest.mark.parametrize(("silent_s", "refused"), [(1.0, True), (SILENT_S + 60, False)])
def test_a_holder_on_another_host_counts_as_long_as_it_gives_signs_of_life(
    tmp_path: Path, silent_s: float, refused: bool
) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "far-away", "pid": 7, "since": "2026-01-01 00:00:00"}))
    os.utime(path, (time.time() - silent_s,) * 2)
    lock = Lock(path, what="the thing", beat_s=0.05)
    if refused:
        with pytest.raises(UserError, match="process 7 on far-away"):
            lock.acquire()
    else:
        assert "process 7 on far-away" in (lock.acquire() or "")
        lock.release()


def test_a_damaged_lock_file_does_not_keep_anyone_out(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"\xff\x00 no json")
    lock = Lock(tmp_path / "lock", what="the thing")
    assert lock.acquire() is None
    lock.release()


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_holder_whose_folder_was_removed_ends_and_makes_nothing_anew(
    tmp_path: Path, made_anew: bool
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lock = Lock(folder / "lock", what="the thing")
    lock.acquire()
    folder.rename(tmp_path / "elsewhere")
    if made_anew:
        folder.mkdir()
    with pytest.raises(RunError, match=r"run was removed or renamed while the thing was in use\. So it ends"):
        write_file(folder / "journal", b"one more")
    lock.release()
    assert (list(folder.iterdir()) if made_anew else folder.exists()) in ([], False)
