import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.errors import RunError
from flannel_pl.launch.events import EventLog, read_events
from flannel_pl.launch.gathering import BackgroundGather, finish_gathering
from flannel_pl.recording.formats.safetensors.layout import read_layout
from flannel_pl.recording.gathering.copying import copy_damage, copy_tensors
from flannel_pl.recording.gathering.gathered import gathered_runs, is_gathered
from flannel_pl.recording.gathering.gatherer import Gatherer
from tests.recording.damage import write_byte
from tests.recording.gathering_samples import (
    assert_gathered,
    bring_back,
    experiment,
    hide,
    make_run,
    tensors_of,
)
from tests.recording.recording_samples import make_experiment


def names(events: EventLog) -> list[str]:
    return [event["event"] for event in read_events(events.path)]


def wait_until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.fixture
def events(tmp_path: Path) -> EventLog:
    """A log outside of the experiment's folder, where nothing but the recording is expected."""
    return EventLog(tmp_path / "events.jsonl")


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of every run whose copy in the growing file is checked, in order."""
    runs: list[int] = []

    def noted(path: Path, layout: Any, index: int, metadata: Any, **options: Any) -> list[str]:
        runs.append(index)
        return copy_damage(path, layout, index, metadata, **options)

    monkeypatch.setattr("flannel_pl.recording.gathering.gatherer.copy_damage", noted)
    return runs


@pytest.mark.parametrize("keep_shards", [True, False])
def test_every_copy_is_checked_once(
    tmp_path: Path, events: EventLog, checked: list[int], keep_shards: bool
) -> None:
    paths = experiment(tmp_path / "exp", keep_shards=keep_shards)
    expected = tensors_of(paths)
    hide(paths, 0, 1, 2)
    with BackgroundGather(paths, events=events) as background:
        for run in (1, 0, 2):
            bring_back(paths, run)
            background.add(run)
        wait_until(lambda: gathered_runs(paths.folder) == {0, 1, 2})
    assert finish_gathering(paths, mode="single", events=events, background=background)
    assert checked == [1, 0, 2]
    assert_gathered(paths, expected, shards=3 if keep_shards else 0)
    assert names(events) == ["gather_started", *["run_gathered"] * 3, "gather_finished"]
    assert [event["run"] for event in read_events(events.path)[1:4]] == [1, 0, 2]


def test_what_an_earlier_launch_left_is_copied_first(
    tmp_path: Path, events: EventLog, checked: list[int]
) -> None:
    paths = experiment(tmp_path / "exp")
    expected = tensors_of(paths)
    hide(paths, 2)
    Gatherer(paths.folder).add(0)
    with BackgroundGather(paths, events=events) as background:
        wait_until(lambda: gathered_runs(paths.folder) == {0, 1})
        bring_back(paths, 2)
        background.add(2)
        wait_until(lambda: gathered_runs(paths.folder) == {0, 1, 2})
    finish_gathering(paths, mode="single", events=events, background=background)
    assert sorted(checked) == [0, 0, 1, 2]  # run 0 by each of the two launches
    assert_gathered(paths, expected, shards=0)


def test_a_run_that_is_queued_at_the_end_is_gathered_after_it(
    tmp_path: Path, events: EventLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = experiment(tmp_path / "exp", keep_shards=True)
    expected = tensors_of(paths)
    hide(paths, 0, 1, 2)
    begun, may_go_on = threading.Event(), threading.Event()
    add = Gatherer.add

    def slow(self: Gatherer, run_index: int, **options: Any) -> None:
        begun.set()
        assert may_go_on.wait(20)
        add(self, run_index, **options)

    monkeypatch.setattr(Gatherer, "add", slow)
    with BackgroundGather(paths, events=events) as background:
        for run in (0, 1, 2):
            bring_back(paths, run)
            background.add(run)
        assert begun.wait(20)

        def go_on_once_it_ends() -> None:
            assert background._ending.wait(20)
            may_go_on.set()

        threading.Thread(target=go_on_once_it_ends).start()
    assert names(events) == ["gather_started", "run_gathered"]
    assert finish_gathering(paths, mode="single", events=events, background=background)
    assert names(events) == ["gather_started", "run_gathered", "gather_finished"]
    assert capsys.readouterr().out.startswith(f"{paths.gathered} (")
    assert_gathered(paths, expected, shards=3)


def test_an_exception_gives_up_the_copy_that_is_under_way(
    tmp_path: Path, events: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = experiment(tmp_path / "exp", keep_shards=True)
    expected = tensors_of(paths)
    hide(paths, 0, 1, 2)
    begun = threading.Event()

    def endless(*arguments: Any, **options: Any) -> None:
        begun.set()
        while True:
            copy_tensors(*arguments, **options)

    def interrupted() -> None:
        with BackgroundGather(paths, events=events) as background:
            bring_back(paths, 0)
            background.add(0)
            assert begun.wait(20)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("flannel_pl.recording.gathering.gatherer.copy_tensors", endless)
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    assert names(events) == ["gather_started"]
    assert gathered_runs(paths.folder) == set()
    bring_back(paths, 1)
    bring_back(paths, 2)
    assert finish_gathering(paths, mode="single", events=events)
    assert_gathered(paths, expected, shards=3)


def fail(*arguments: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("lasting", [True, False])
def test_a_failure_stops_nothing_and_is_told(
    tmp_path: Path,
    events: EventLog,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lasting: bool,
) -> None:
    paths = experiment(tmp_path / "exp")
    expected = tensors_of(paths)
    hide(paths, 0, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", fail)
        with BackgroundGather(paths, events=events) as background:
            bring_back(paths, 0)
            background.add(0)
            wait_until(lambda: "gather_failed" in names(events))
            for run in (1, 2):
                bring_back(paths, run)
                background.add(run)
        message = f"Cannot write {paths.growing}: No space left on device"
        assert f"gathering while runs trained has failed: {message}" in capsys.readouterr().err
        if lasting:
            with pytest.raises(RunError, match="No space left on device"):
                finish_gathering(paths, mode="single", events=events, background=background)
    again = ["gather_started", "gather_failed"] if lasting else []
    assert names(events) == ["gather_started", "gather_failed", *again]
    assert message in read_events(events.path)[1]["cause"]
    assert finish_gathering(paths, mode="single", events=events, background=background)
    assert_gathered(paths, expected, shards=0)


def test_a_fault_of_ours_is_told_too(
    tmp_path: Path, events: EventLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = experiment(tmp_path / "exp")

    def faulty(self: Gatherer, run_index: int, **options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Gatherer, "add", faulty)
    with BackgroundGather(paths, events=events):
        wait_until(lambda: "gather_failed" in names(events))
    assert "has failed: ZeroDivisionError" in capsys.readouterr().err


def test_gaps_are_refused(tmp_path: Path, events: EventLog) -> None:
    paths = experiment(tmp_path / "exp")
    hide(paths, 0, 1, 2)
    with BackgroundGather(paths, events=events) as background:
        bring_back(paths, 1)
        background.add(1)
        wait_until(lambda: gathered_runs(paths.folder) == {1})
    with pytest.raises(RunError, match=r"no finished recording of run 0, 2 \(2 of 3 runs\)\. Run flannel-pl"):
        finish_gathering(paths, mode="single", events=events, background=background)
    assert names(events)[-1] == "gather_failed"
    assert gathered_runs(paths.folder) == {1}


def state_of(folder: Path) -> dict[Path, tuple[int, int, bytes]]:
    """Returns everything in a folder: when it was modified, which file it is, its bytes."""
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_ino, b"" if path.is_dir() else path.read_bytes())
        for path in [folder, *folder.rglob("*")]
    }


@pytest.mark.parametrize("mode", ["single", "index"])
def test_a_finished_experiment_is_left_alone(
    tmp_path: Path, events: EventLog, checked: list[int], mode: Any
) -> None:
    paths = make_experiment(tmp_path / "exp", gather=mode)
    assert not is_gathered(paths, mode=mode)
    assert finish_gathering(paths, mode=mode, events=events)
    assert names(events) == ["gather_started", "gather_finished"]
    paths.masks.unlink()  # nothing but the recording is needed
    before = state_of(tmp_path)
    checked.clear()
    assert is_gathered(paths, mode=mode)
    assert not finish_gathering(paths, mode=mode, events=events)
    assert state_of(tmp_path) == before
    assert checked == []


def test_what_a_crash_left_beside_the_finished_file_is_cleared_away(tmp_path: Path, events: EventLog) -> None:
    paths = experiment(tmp_path / "exp")
    expected = tensors_of(paths)
    hide(paths, 2)
    gatherer = Gatherer(paths.folder)
    gatherer.add(0)
    notes = paths.growing_notes.read_bytes()
    bring_back(paths, 2)
    gatherer.finish()
    for run in range(3):
        make_run(paths, run)
    paths.growing_notes.write_bytes(notes)
    for path in (paths.growing, paths.growing_moved, paths.growing_notes.with_suffix(".json.partial")):
        path.write_bytes(b"half")
    assert not is_gathered(paths, mode="single")
    assert not finish_gathering(paths, mode="single", events=events)
    assert is_gathered(paths, mode="single")
    assert_gathered(paths, expected, shards=0)
    assert names(events) == []


@pytest.mark.parametrize("left", ["growing", "growing_notes", "growing_moved", "shard"])
def test_whatever_is_left_is_noticed_and_cleared_away(tmp_path: Path, events: EventLog, left: str) -> None:
    paths = experiment(tmp_path / "exp")
    expected = tensors_of(paths)
    finish_gathering(paths, mode="single", events=events)
    if left == "shard":
        make_run(paths, 1)
    else:
        getattr(paths, left).write_bytes(b"half")
    assert not is_gathered(paths, mode="single")
    assert not finish_gathering(paths, mode="single", events=events)
    assert_gathered(paths, expected, shards=0)


def test_a_damaged_gathered_file_is_made_again(tmp_path: Path, events: EventLog) -> None:
    paths = experiment(tmp_path / "exp", keep_shards=True)
    expected = tensors_of(paths)
    finish_gathering(paths, mode="single", events=events)
    write_byte(paths.gathered, len(read_layout(paths.gathered).header) // 2, 0x21)
    assert finish_gathering(paths, mode="single", events=events)
    assert_gathered(paths, expected, shards=3)


def test_nobody_is_kept_waiting_for_an_experiment_without_runs_to_gather(
    tmp_path: Path, events: EventLog
) -> None:
    paths = experiment(tmp_path / "exp")
    hide(paths, 0, 1, 2)
    with BackgroundGather(paths, events=events) as background:
        pass
    assert background.gatherer is None
    assert names(events) == []
