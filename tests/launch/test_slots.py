"""How many runs are side by side, and what each sees of its device: real processes that train nothing."""

import json
import multiprocessing.forkserver as forkserver
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.errors import RunError
from flannel_pl.experiment import ResolvedExperiment, Slot
from flannel_pl.launch.attended import train_all
from flannel_pl.launch.events import EventLog, read_events
from flannel_pl.launch.launcher import Work
from flannel_pl.launch.launchers.local import processes
from flannel_pl.launch.standing import Outcome
from flannel_pl.training.cli import resolve
from tests.launch.work_samples import (
    be_forked_too_late,
    be_killed,
    finish,
    lose_the_folder,
    need_all_the_memory,
    wait_for_another_attempt,
    work_without_training,
)
from tests.processes import alive


def launch(folder: Path, work: Work, slots: list[Slot], *arguments: str) -> list[Outcome]:
    words = [*arguments, "--experiment.output_dir", str(folder), "--trainer.max_steps", "1"]
    experiment = ResolvedExperiment.from_config(resolve(words))
    for run in experiment.runs:
        experiment.paths.run(run.index).folder.mkdir(parents=True)
    events = EventLog(experiment.paths.events)
    return train_all(
        experiment, experiment.runs, slots, work=work, events=events, finished=lambda index: None
    )


def events_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "flannel" / "events.jsonl") if event["event"] == name]


def test_after_a_kill_fewer_runs_are_side_by_side_and_none_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slots = [Slot("cpu", None, 3)] * 4
    words = ["--experiment.seeds", "1..5", "--launch.max_retries", "1"]
    outcomes = launch(tmp_path, need_all_the_memory, slots, *words)
    assert [outcome.failure for outcome in outcomes] == [None] * 5
    numbers = [event["runs"] for event in events_of(tmp_path, "fewer_at_once")]
    assert numbers == sorted(set(numbers), reverse=True)
    assert numbers[-1] == 1
    said = capsys.readouterr().out
    assert "memory may have run out: from now on 1 run(s) side by side instead of" in said
    shards = sorted((tmp_path / "flannel").glob("run_*/recording.safetensors"))
    assert {json.loads(shard.read_text())["threads"] for shard in shards} == {3}, "bits depend on that"


@pytest.mark.parametrize(("max_retries", "num_attempts"), [(0, 1), (2, 3)])
def test_a_run_that_is_killed_by_itself_is_given_up(
    tmp_path: Path, max_retries: int, num_attempts: int
) -> None:
    words = ["--experiment.seeds", "1", "--launch.max_retries", str(max_retries)]
    outcomes = launch(tmp_path, be_killed, [Slot("cpu", None, 1)] * 2, *words)
    assert [outcome.attempts for outcome in outcomes] == [num_attempts]
    assert outcomes[0].failure == "killed by SIGKILL (by hand, or because memory ran out)"


def test_no_retries_means_none(tmp_path: Path) -> None:
    words = ["--experiment.seeds", "1..2", "--launch.max_retries", "0"]
    outcomes = launch(tmp_path, be_killed, [Slot("cpu", None, 1)] * 2, *words)
    assert [outcome.attempts for outcome in outcomes] == [1, 1]


def test_a_run_whose_folder_is_removed_is_not_tried_in_vain(tmp_path: Path) -> None:
    words = ["--experiment.seeds", "1..3", "--launch.max_retries", "5"]
    outcomes = launch(tmp_path, lose_the_folder, [Slot("cpu", None, 1)] * 3, *words)
    folder = tmp_path / "flannel" / "run_1"
    said = f"{folder} was removed or renamed while it was trained; the same command begins it anew"
    assert [outcome.failure for outcome in outcomes] == [None, said, None]
    assert outcomes[1].attempts == 1
    assert not folder.exists()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_undisturbed_runs_stay_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(processes, "start_method", lambda accelerator: method)
    outcomes = launch(tmp_path, finish, [Slot("cpu", None, 1)] * 3, "--experiment.seeds", "1..4")
    assert [outcome.failure for outcome in outcomes] == [None] * 4
    assert not events_of(tmp_path, "fewer_at_once")


def test_a_runs_process_sees_its_own_device_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-7")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    slots = [Slot("cuda", number, 1) for number in range(2)]
    outcomes = launch(tmp_path, work_without_training, slots, "--experiment.seeds", "1..2")
    assert [(outcome.failure, outcome.device) for outcome in outcomes] == [(None, "cuda:0"), (None, "cuda:1")]
    for index, name in enumerate(["5", "GPU-7"]):
        content = json.loads((tmp_path / f"flannel/run_{index}/recording.safetensors").read_text())
        assert content["environment"]["CUDA_VISIBLE_DEVICES"] == name
        assert content["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert content["number"] == 0, "the only one it sees"


def test_a_process_that_cannot_use_its_device_says_so_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        processes, "start_method", lambda accelerator: "forkserver"
    )  # for once on this device
    outcomes = launch(tmp_path, be_forked_too_late, [Slot("mps", 0, 1)], "--experiment.seeds", "1")
    assert [outcome.attempts for outcome in outcomes] == [1]
    assert outcomes[0].failure is not None
    assert "exit code 3: flannel-pl: error: mps:0 cannot be used in a process that was forked" in (
        outcomes[0].failure
    )


def test_a_device_has_its_own_number_where_all_are_seen() -> None:
    assert [Slot("cuda", 3, 1).number, Slot("mps", 0, 1).number, Slot("cpu", None, 1).number] == [3, 0, None]
    assert Slot("cuda", 3, 1, {"CUDA_VISIBLE_DEVICES": "3"}).number == 0


def test_a_fork_server_that_cannot_fork_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(start: object, numbers: object) -> None:
        raise EOFError  # what multiprocessing makes of it

    monkeypatch.setattr(processes, "start_deaf", break_off)
    with pytest.raises(RunError, match=r"ended while it started run 0: memory has run out, or .*ulimit -u"):
        launch(tmp_path, finish, [Slot("cpu", None, 1)], "--experiment.seeds", "1..2")


@pytest.mark.slow
def test_runs_do_not_outlive_their_fork_server_and_are_started_again(tmp_path: Path) -> None:
    pids: list[int] = []

    def kill_server() -> None:
        deadline_s = time.monotonic() + 60
        while len(marks := list((tmp_path / "flannel").glob("at work *"))) < 2 or not all(
            mark.read_text() for mark in marks
        ):
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        pids.extend(int(mark.read_text()) for mark in marks)
        server: Any = forkserver._forkserver
        os.kill(server._forkserver_pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_server)
    killer.start()
    words = ["--experiment.seeds", "1..2"]
    outcomes = launch(tmp_path, wait_for_another_attempt, [Slot("cpu", None, 1)] * 2, *words)
    killer.join()
    assert [(outcome.failure, outcome.attempts) for outcome in outcomes] == [(None, 2), (None, 2)]
    assert not any(alive(pid) for pid in pids)
    causes = {event["cause"] for event in events_of(tmp_path, "run_failed")}
    assert causes == {"the process that it was forked from was killed (by hand, or because memory ran out)"}
