"""Where nothing can be forked, as on macOS: every run is a new process, with the same bits."""

import multiprocessing.forkserver as forkserver
import sys
from pathlib import Path
from typing import Any

import pytest

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.launch.events import read_events
from flannel_pl.launch.fork_server import start_method, stop_fork_server
from flannel_pl.launch.launchers.local import processes
from tests.conftest import SmallData


@pytest.mark.parametrize(
    ("platform", "accelerator", "method"),
    [
        ("linux", None, "forkserver"),
        ("linux", "cpu", "forkserver"),
        ("linux", "cuda", "forkserver"),
        ("linux", "mps", "spawn"),
        ("darwin", None, "spawn"),
        ("darwin", "cpu", "spawn"),
        ("darwin", "mps", "spawn"),
    ],
)
def test_how_runs_are_started(
    monkeypatch: pytest.MonkeyPatch, platform: str, accelerator: str | None, method: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert start_method(accelerator) == method


@pytest.mark.slow
def test_new_processes_give_the_same_bits(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["fit", *small_data.arguments, "--experiment.seeds", "42..43", "--trainer.max_steps", "3"]
    words += ["--launch.threads_per_run", "1", "--trainer.logger", "false", "--experiment.output_dir"]
    assert main([*words, str(tmp_path / "forked")]) == 0
    stop_fork_server()
    monkeypatch.setattr(processes, "start_method", lambda accelerator: "spawn")
    assert main([*words, str(tmp_path / "spawned")]) == 0
    server: Any = forkserver._forkserver
    assert server._forkserver_pid is None, "nothing was forked"
    folders = [tmp_path / name / "flannel" for name in ("forked", "spawned")]
    with flannel_pl.open_recording(folders[0]) as one, flannel_pl.open_recording(folders[1]) as other:
        for run in one:
            for name in run.names:
                assert run.tensor(name)[:].tobytes() == other.run(run.index).tensor(name)[:].tobytes(), name
    ended = [event for event in read_events(folders[1] / "events.jsonl") if event["event"] == "run_finished"]
    assert sorted(event["run"] for event in ended) == [0, 1]
    assert (folders[1] / "run_1" / "log.txt").exists()
