import datetime
import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_pl.errors import RunError
from flannel_pl.launch.events import EventLog, read_events


def test_events_are_read_back_in_order_with_time_and_clock(weird_tmp_path: Path) -> None:
    path = weird_tmp_path / "events.jsonl"
    assert read_events(path) == []
    events = EventLog(path)
    events.write("run_started", run=3, seed=45, device="cuda:1", attempt=1, pid=77)
    EventLog(path).write("run_failed", run=3, cause="caf\u00e9\n\udcff", log=path, will_retry=True)
    first, second = read_events(path)
    assert {key: first[key] for key in first if key not in ("time", "monotonic_s")} == {
        **{"event": "run_started", "run": 3, "seed": 45, "device": "cuda:1", "attempt": 1, "pid": 77},
    }
    assert second["cause"] == "caf\u00e9\n\udcff"
    assert second["log"] == str(path)
    assert second["will_retry"] is True
    assert 0 <= second["monotonic_s"] - first["monotonic_s"] < 60
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(first["time"])
    assert 0 <= age.total_seconds() + 0.001 < 60
    assert len(first["time"]) == len("2026-01-02T03:04:05.678+00:00")
    assert path.read_bytes().count(b"\n") == 2
    assert path.read_bytes().isascii()


@pytest.mark.parametrize("kept", [1, 30, -1])
def test_a_torn_line_costs_only_itself(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "events.jsonl"
    events = EventLog(path)
    events.write("launch_started")
    whole = path.read_bytes()
    events.write("run_started", run=0)
    torn = path.read_bytes()[len(whole) :][:kept]
    path.write_bytes(whole + torn)
    expected = ["launch_started"] + ["run_started"] * (kept == -1)  # only its newline is missing
    assert [event["event"] for event in read_events(path)] == expected
    EventLog(path).write("launch_ended", code=0)
    assert [event["event"] for event in read_events(path)] == [*expected, "launch_ended"]


def test_lines_that_are_no_events_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'\n\x00\x00\n7\n[]\n{"run": 1}\n{"event": "launch_ended", "code": 1}\n')
    assert read_events(path) == [{"event": "launch_ended", "code": 1}]


def test_a_log_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Cannot read .*: Is a directory"):
        read_events(tmp_path)


def test_a_failing_disk_is_warned_of_once_and_costs_only_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events.jsonl"
    events = EventLog(path)
    events.write("launch_started")

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "write", full)
        for run in range(3):
            events.write("run_started", run=run)
    assert len(caplog.messages) == 1
    assert "No space left on device" in caplog.messages[0]
    assert str(path) in caplog.messages[0]
    events.write("launch_ended", code=0)
    assert [event["event"] for event in read_events(path)] == ["launch_started", "launch_ended"]


def test_half_a_write_is_a_failure_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events, write = EventLog(tmp_path / "events.jsonl"), os.write
    events.write("launch_started")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))
        events.write("run_started", run=0)
    assert len(caplog.messages) == 1
    events.write("launch_ended", code=0)
    assert [event["event"] for event in read_events(events.path)] == ["launch_started", "launch_ended"]


def test_a_missing_folder_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    EventLog(tmp_path / "gone" / "events.jsonl").write("launch_started")
    assert "gone is not there any more" in caplog.messages[0]


def test_processes_that_append_at_once_mix_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    code = (
        "import sys; from pathlib import Path; from flannel_pl.launch.events import EventLog\n"
        "for k in range(500): EventLog(Path(sys.argv[1])).write('run_started', writer=sys.argv[2], k=k)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    events = read_events(path)
    assert len(events) == len([line for line in path.read_bytes().splitlines() if line]) == 1000
    for name in "ab":
        assert [event["k"] for event in events if event["writer"] == name] == list(range(500))


def test_every_line_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).write("stopping", signal="SIGTERM")
    assert json.loads(path.read_text())["signal"] == "SIGTERM"
