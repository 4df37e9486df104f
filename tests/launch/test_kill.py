"""Whatever is killed when, the same command finishes the experiment with the bits of an undisturbed one."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flannel_pl
from flannel_pl.launch.events import read_events
from flannel_pl.recording.writing.journal import Journal
from tests.conftest import SmallData
from tests.processes import alive

NUM_RUNS = 4
NUM_KILLS = int(os.environ.get("FLANNEL_PL_KILLS", "20"))


def command(data: SmallData, folder: Path, *, steps: int = 400, every: int = 7) -> list[str]:
    words = [sys.executable, "-m", "flannel_pl", "fit", *data.arguments, "--experiment.name", "killed"]
    words += ["--experiment.seeds", f"1..{NUM_RUNS}", "--trainer.max_steps", str(steps)]
    words += ["--launch.devices", "2", "--launch.threads_per_run", "1"]
    words += ["--launch.checkpoint_every", str(every), "--launch.max_retries", "10000"]
    return [*words, "--trainer.logger", "false", "--experiment.output_dir", str(folder)]


def bits_of(folder: Path) -> dict[str, bytes]:
    with flannel_pl.open_recording(folder) as recording:
        assert recording.runs == tuple(range(NUM_RUNS))
        return {
            f"run_{run.index}_{name}": run.tensor(name)[:].tobytes()
            for run in recording
            for name in run.names
        }


def wait_until(condition: Callable[[], object], *, timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited too long"
        time.sleep(0.02)


class Chaos:
    """Starts the launcher as often as needed and kills it, or one of its runs, at random moments."""

    def __init__(self, words: list[str], folder: Path, *, seed: int) -> None:
        self.words, self.folder = words, folder
        self.draw = random.Random(seed)
        self.num_kills = 0
        self.launcher: subprocess.Popen[bytes] | None = None
        self.num_started = 0

    def worker_pids(self) -> set[int]:
        return {event["pid"] for event in self.starts()[self.num_started :]}

    def starts(self) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        events = read_events(path) if path.exists() else []
        return [event for event in events if event["event"] == "run_started"]

    def ensure_launcher(self) -> None:
        if self.launcher is None or self.launcher.poll() is not None:
            assert self.launcher is None or self.launcher.returncode in (-signal.SIGKILL, 0)
            self.num_started = len(self.starts())
            self.launcher = subprocess.Popen(self.words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_until(lambda: self.worker_pids() or self.finished())

    def finished(self) -> bool:
        assert self.launcher is not None
        return self.launcher.poll() is not None

    def kill_something(self) -> bool:
        """Returns False if the experiment has finished before anything could be killed."""
        self.ensure_launcher()
        assert self.launcher is not None
        time.sleep(self.draw.uniform(0.0, 1.2))
        if self.finished():
            return False
        victims = sorted(pid for pid in self.worker_pids() if alive(pid))
        if victims and self.draw.random() < 0.7:
            with contextlib.suppress(ProcessLookupError):  # it may have ended by now
                os.kill(self.draw.choice(victims), signal.SIGKILL)
        else:
            self.launcher.kill()
            self.launcher.wait()
            orphans = self.worker_pids()
            wait_until(lambda: not any(alive(pid) for pid in orphans), timeout_s=20)
        self.num_kills += 1
        return True


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sigkill_at_random_moments(small_data: SmallData, tmp_path: Path) -> None:
    subprocess.run(command(small_data, tmp_path / "calm"), check=True, capture_output=True)
    expected = bits_of(tmp_path / "calm" / "killed")
    wild = tmp_path / "wild"
    folder, kills, round_number = wild / "killed", 0, 0
    while kills < NUM_KILLS:
        # An experiment that survived its kills to the end is compared, and another one is begun.
        chaos = Chaos(command(small_data, wild), folder, seed=1000 + round_number)
        while chaos.num_kills < NUM_KILLS - kills and chaos.kill_something():
            pass
        kills += chaos.num_kills
        if chaos.launcher is not None:
            chaos.launcher.wait()
        finish = subprocess.run(command(small_data, wild), capture_output=True, text=True, check=False)
        assert finish.returncode == 0, finish.stdout + finish.stderr
        actual = bits_of(folder)
        assert actual.keys() == expected.keys()
        assert [key for key in expected if actual[key] != expected[key]] == []
        left_over = [
            path.name for path in folder.rglob("*") if path.suffix == ".partial" or path.name == "lock"
        ]
        assert left_over == []
        assert not any(alive(pid) for pid in chaos.worker_pids())
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        round_number += 1
    print(f"{kills} kills in {round_number} experiments")


@pytest.mark.slow
def test_a_stopped_experiment_goes_on_bit_for_bit(small_data: SmallData, tmp_path: Path) -> None:
    # Long runs: one of 150 steps may be done before it is seen to have begun.
    calm = command(small_data, tmp_path / "calm", steps=400, every=40)
    words = command(small_data, tmp_path / "stopped", steps=400, every=40)
    folder = tmp_path / "stopped" / "killed"
    subprocess.run(calm, check=True, capture_output=True)
    launcher = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    journal = Journal(folder / "run_1" / "journal")
    wait_until(lambda: (entry := journal.read()) is not None and entry.rows_written > 3)
    launcher.send_signal(signal.SIGTERM)
    output, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == 143, output
    assert "go on with: flannel-pl fit" in output
    entry = journal.read()
    assert entry is not None
    assert entry.state == "stopped"
    stopped_at = entry.rows_committed - 1
    assert any(path.name.startswith(f"checkpoint-{stopped_at}-") for path in (folder / "run_1").iterdir())
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"going on after step {stopped_at}" in (folder / "run_1" / "log.txt").read_text()
    assert bits_of(folder) == bits_of(tmp_path / "calm" / "killed")
