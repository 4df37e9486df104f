"""A launcher or a run whose lock another host has taken over: it ends, and leaves everything to the other."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.__main__ import main
from flannel_pl.adapters.lightning.checkpointing import Checkpoints
from flannel_pl.errors import RunError
from flannel_pl.experiment import ResolvedExperiment, RunPaths, Slot
from flannel_pl.launch.attended import train_all
from flannel_pl.launch.events import EventLog, read_events
from flannel_pl.launch.fork_server import stop_fork_server
from flannel_pl.recording.writing.lock import Lock
from flannel_pl.recording.writing.lock_file import Candidate, HolderWords, look
from tests.conftest import SmallData
from tests.launch.sleeper import sleep
from tests.processes import alive


def steal(path: Path) -> None:
    """Does what a successor on another host does."""
    candidate = Candidate(path, HolderWords("far-away", 7, "2026-01-01 00:00:00", "f" * 16))
    assert candidate.take_over(look(path))
    candidate.discard()
    os.close(candidate.fd)


@pytest.fixture
def experiment(tmp_path: Path) -> ResolvedExperiment:
    config: dict[str, Any] = {
        "experiment": {"name": "it", "seeds": "1..3", "sweep": {}, "output_dir": str(tmp_path), "run": None},
        "trainer": {"max_steps": 5},
        "launch": {"launcher": "local", "max_retries": 2},
        "recorder": {"every_n_steps": 1},
        **{"model": {}, "data": {}},
    }
    config["experiment"]["gather"] = "none"
    return ResolvedExperiment.from_config(config)


@pytest.fixture
def fork_server() -> Iterator[None]:
    stop_fork_server()
    yield
    stop_fork_server()


@pytest.mark.usefixtures("fork_server")
def test_a_launcher_ends_and_takes_its_runs_with_it(experiment: ResolvedExperiment) -> None:
    paths = experiment.paths
    for run in experiment.runs:
        paths.run(run.index).folder.mkdir(parents=True)
    lock, events = Lock(paths.lock, what="the experiment it", beat_s=0.1), EventLog(paths.events)
    lock.acquire()

    def steal_once_two_have_started() -> None:
        while len(read_events(paths.events)) < 2:
            time.sleep(0.01)
        steal(paths.lock)

    thief = threading.Thread(target=steal_once_two_have_started)
    thief.start()
    slots = [Slot("cpu", None, 1)] * 2
    with pytest.raises(RunError, match="the experiment it was taken over by process 7 on far-away since"):
        train_all(experiment, experiment.runs, slots, work=sleep, events=events, finished=print)
    thief.join()
    lock.release()
    assert "far-away" in paths.lock.read_text()
    deadline_s = time.monotonic() + 5
    for event in read_events(paths.events):
        while alive(event["pid"]):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)


@pytest.mark.slow
def test_a_run_ends_and_writes_nothing_more(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = RunPaths(tmp_path / "it" / "run_0")
    left: dict[str, bytes] = {}
    end_of_step = Checkpoints.on_train_batch_end

    def steal_after_step_5(checkpoints: Checkpoints, trainer: Any, module: Any, *others: Any) -> None:
        end_of_step(checkpoints, trainer, module, *others)
        if trainer.global_step == 5:
            while [step for step, _, _ in paths.checkpoints()] != [4, 2]:
                time.sleep(0.01)
            steal(paths.lock)
            # The journal is written twice a second, which is when it is noticed without waiting for a beat.
            left.update({path.name: path.read_bytes() for path in paths.folder.iterdir()})
            time.sleep(0.7)

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", steal_after_step_5)
    command = [
        "fit",
        *small_data.arguments,
        "--trainer.max_steps",
        "100000",
        "--launch.checkpoint_every",
        "2",
    ]
    command += ["--experiment.name", "it", "--experiment.output_dir", str(tmp_path)]
    command += ["--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"]
    assert main(command) == 1
    said = capfd.readouterr().err
    assert "flannel-pl: error: run 0 of" in said
    assert said.count("was taken over by process 7 on far-away since") == 1
    assert "Traceback" not in said
    there = {path.name: path.read_bytes() for path in paths.folder.iterdir()}
    assert there.keys() == left.keys()
    for name in there.keys() - {"recording.partial", "log.txt"}:  # the log says what happened
        assert there[name] == left[name], name
