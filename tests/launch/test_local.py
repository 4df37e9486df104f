"""Several runs at once, as real processes; what Lightning's arguments mean for an experiment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.launch.events import read_events
from flannel_pl.recording.writing.journal import Journal
from tests.conftest import SmallData
from tests.processes import alive

CONFIG = """
trainer: {max_steps: 1000, precision: bf16-mixed, gradient_clip_val: 1.0, log_every_n_steps: 1}
experiment: {name: twins, seeds: 42..51}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "twins.yaml"
    path.write_text(CONFIG)
    return path


def fit(data: SmallData, folder: Path, *arguments: str) -> int:
    return main(["fit", *data.arguments, "--experiment.output_dir", str(folder), *arguments])


def test_overrides_mean_what_a_lightning_user_expects(
    small_data: SmallData, config: Path, weird_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["--trainer.max_steps", "5", "--experiment.seeds", "42..43", "--model.learning_rate", "3e-4"]
    overrides += ["--trainer.logger", "TensorBoardLogger", "--trainer.devices", "2"]
    # Before --config as well as after it.
    assert fit(small_data, weird_tmp_path, *overrides, "--config", str(config)) == 0
    folder = weird_tmp_path / "twins"
    with flannel_pl.open_recording(folder / "twins.safetensors") as recording:
        assert recording.seeds == (42, 43)
        for run in recording:
            assert run.num_rows == 6
            assert run.learning_rates[1:] == pytest.approx(3e-4 * np.array([1.0, 0.8, 0.6, 0.4, 0.2]))
    for index in (0, 1):
        run_folder = folder / f"run_{index}"
        assert list(run_folder.rglob("events.out.tfevents*")), "each run logs in its own folder"
        entry = Journal(run_folder / "journal").read()
        assert entry is not None
        assert entry.state == "done"
        assert "GLOBAL_RANK" not in (run_folder / "log.txt").read_text()
    table = capsys.readouterr().out
    assert "run 0: done" in table
    assert "6/6" in table


def test_config_order_does_not_matter(small_data: SmallData, config: Path, tmp_path: Path) -> None:
    overrides = ["--trainer.max_steps", "2", "--experiment.seeds", "7"]
    assert fit(small_data, tmp_path / "a", *overrides, "--config", str(config)) == 0
    assert fit(small_data, tmp_path / "b", "--config", str(config), *overrides) == 0
    one, other = (load_run_config(tmp_path / name / "twins") for name in "ab")
    one["experiment"].pop("output_dir")
    other["experiment"].pop("output_dir")
    assert one == other


def load_run_config(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((folder / "run_0" / "config.yaml").read_text())
    return loaded


def test_a_runs_own_config_repeats_it_bit_for_bit(
    small_data: SmallData, config: Path, tmp_path: Path
) -> None:
    arguments = ["--config", str(config), "--trainer.max_steps", "4", "--experiment.seeds", "42..43"]
    assert fit(small_data, tmp_path / "first", *arguments) == 0
    run_config = tmp_path / "first" / "twins" / "run_1" / "config.yaml"
    again = ["fit", "--config", str(run_config), "--experiment.output_dir", str(tmp_path / "again")]
    assert main([*again, "--trainer.enable_progress_bar", "false"]) == 0
    one, other = (tmp_path / name / "twins" / "run_1" for name in ("first", "again"))
    assert not (other.parent / "run_0").exists()
    with flannel_pl.open_recording(one) as first, flannel_pl.open_recording(other) as second:
        for name in first.run(1).names:
            assert first.run(1).tensor(name)[:].tobytes() == second.run(1).tensor(name)[:].tobytes(), name


def test_seed_everything_means_that_single_seed(small_data: SmallData, config: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(config), "--trainer.max_steps", "2", "--seed_everything", "7"]
    assert fit(small_data, tmp_path, *arguments) == 0
    with flannel_pl.open_recording(tmp_path / "twins") as recording:
        assert recording.seeds == (7,)


def test_swept_values_times_seeds(small_data: SmallData, config: Path, tmp_path: Path) -> None:
    sweep = ["--experiment.sweep", "{model.init_scale: [0.01, 0.04]}", "--experiment.seeds", "[3, 5]"]
    assert fit(small_data, tmp_path, "--config", str(config), "--trainer.max_steps", "2", *sweep) == 0
    with flannel_pl.open_recording(tmp_path / "twins") as recording:
        assert recording.seeds == (3, 5, 3, 5)
        spreads = [np.asarray(run.embeddings[0], dtype=np.float32).std() for run in recording]
        assert [run.swept for run in recording] == 2 * [{"model.init_scale": 0.01}] + 2 * [
            {"model.init_scale": 0.04}
        ]
    assert spreads == pytest.approx([0.01, 0.01, 0.04, 0.04], rel=0.1)


def test_a_finished_experiment_is_left_alone_and_a_changed_one_refused(
    small_data: SmallData, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(config), "--trainer.max_steps", "2", "--experiment.seeds", "42..43"]
    assert fit(small_data, tmp_path, *arguments) == 0
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert fit(small_data, tmp_path, *arguments) == 0
    assert "finished already" in capsys.readouterr().out
    assert fit(small_data, tmp_path, *arguments, "--model.learning_rate", "0.5") == 2
    refusal = capsys.readouterr().err
    assert "model.learning_rate: 0.001 there, 0.5 now" in refusal
    assert "nothing is overwritten" in refusal
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")} == before


def test_a_run_that_keeps_failing_stops_no_other_and_the_same_command_finishes_it(
    small_data: SmallData, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(config), "--trainer.max_steps", "2", "--experiment.seeds", "42..44"]
    arguments += ["--launch.max_retries", "1"]
    obstacle = tmp_path / "twins" / "run_1" / "recording.partial"
    assert fit(small_data, tmp_path, *arguments, "--experiment.run", "0") == 0
    obstacle.mkdir(parents=True)
    capsys.readouterr()
    assert fit(small_data, tmp_path, *arguments) == 1
    output = capsys.readouterr().out
    assert "starting it again" in output
    assert "go on with: " in output
    assert str(tmp_path / "twins" / "run_1" / "log.txt") in output.replace("\n", "")
    events = read_events(tmp_path / "twins" / "events.jsonl")
    failures = [(event["run"], event["will_retry"]) for event in events if event["event"] == "run_failed"]
    assert failures == [(1, True), (1, False)]
    assert (tmp_path / "twins" / "run_2" / "recording.safetensors").exists()
    assert not (tmp_path / "twins" / "twins.safetensors").exists()
    obstacle.rmdir()
    assert fit(small_data, tmp_path, *arguments) == 0
    assert (tmp_path / "twins" / "twins.safetensors").exists()


@pytest.mark.parametrize(
    ("num_runs", "number", "code"),
    [
        *[(1, signal.SIGINT, 130), (2, signal.SIGTERM, 143)],
        pytest.param(1, signal.SIGUSR1, 138, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGUSR1, 138, marks=pytest.mark.slow),
    ],
)
def test_signals_end_the_launcher_and_its_runs_within_ten_seconds(
    small_data: SmallData, config: Path, tmp_path: Path, number: signal.Signals, code: int, num_runs: int
) -> None:
    process, journals = start_endless(small_data, config, tmp_path, num_runs=num_runs)
    pids = [entry.pid for journal in journals if (entry := journal.read()) is not None]
    process.send_signal(number)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == code, output
    assert "nothing is lost, go on with: flannel-pl fit" in output
    assert not any(alive(pid) for pid in pids)
    for journal in journals:
        entry = journal.read()
        assert entry is not None
        assert entry.state == "stopped"
        assert 3 < entry.rows_committed == entry.rows_written
    assert not list((tmp_path / "twins").glob("run_*/recording.safetensors"))
    assert not list(tmp_path.rglob("lock"))


@pytest.mark.slow
def test_a_second_signal_stops_at_once(small_data: SmallData, config: Path, tmp_path: Path) -> None:
    process, journals = start_endless(small_data, config, tmp_path, num_runs=2)
    pids = [entry.pid for journal in journals if (entry := journal.read()) is not None]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # so that the runs cannot obey the first signal
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    began_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(timeout=5)
    assert time.monotonic() - began_s < 3
    process.communicate()
    assert process.returncode == 130
    assert not any(alive(pid) for pid in pids)


@pytest.mark.slow
def test_no_run_outlives_a_killed_launcher(small_data: SmallData, config: Path, tmp_path: Path) -> None:
    process, journals = start_endless(small_data, config, tmp_path, num_runs=2)
    pids = [entry.pid for journal in journals if (entry := journal.read()) is not None]
    process.kill()
    process.communicate()
    wait_until(lambda: not any(alive(pid) for pid in pids), timeout_s=12)
    for journal in journals:
        entry = journal.read()
        assert entry is not None
        assert entry.state == "stopped"


def start_endless(
    data: SmallData, config: Path, folder: Path, *, num_runs: int
) -> "tuple[subprocess.Popen[str], list[Journal]]":
    """Starts a launcher whose runs would go on for long, and waits until all of them have recorded rows."""
    command = [sys.executable, "-m", "flannel_pl", "fit", *data.arguments, "--config", str(config)]
    command += ["--experiment.output_dir", str(folder), "--experiment.seeds", f"42..{41 + num_runs}"]
    command += ["--trainer.max_steps", "100000", "--recorder.tensors", "[losses]"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    journals = [Journal(folder / "twins" / f"run_{index}" / "journal") for index in range(num_runs)]
    wait_until(
        lambda: all((entry := journal.read()) is not None and entry.rows_written > 3 for journal in journals)
    )
    return process, journals


@pytest.mark.slow
def test_two_launchers_are_kept_apart(small_data: SmallData, config: Path, tmp_path: Path) -> None:
    process, _ = start_endless(small_data, config, tmp_path, num_runs=2)
    command = [sys.executable, "-m", "flannel_pl", "fit", *small_data.arguments, "--config", str(config)]
    command += ["--experiment.output_dir", str(tmp_path), "--experiment.seeds", "42..43"]
    command += ["--trainer.max_steps", "100000", "--recorder.tensors", "[losses]"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    process.terminate()
    process.communicate(timeout=20)
    assert second.returncode == 2
    assert f"is in use by process {process.pid} on" in second.stderr
    assert "flannel-pl status" in second.stderr


@pytest.mark.slow
def test_a_killed_run_is_started_again_from_its_checkpoint(
    small_data: SmallData, config: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "flannel_pl", "fit", *small_data.arguments, "--config", str(config)]
    command += ["--experiment.output_dir", str(tmp_path), "--experiment.seeds", "42..43"]
    command += ["--trainer.max_steps", "300", "--launch.checkpoint_every", "10"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    journal = Journal(tmp_path / "twins" / "run_1" / "journal")
    wait_until(lambda: (entry := journal.read()) is not None and entry.rows_written > 20)
    entry = journal.read()
    assert entry is not None
    os.kill(entry.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "killed by SIGKILL (by hand, or because memory ran out)" in output
    assert "going on after step" in (tmp_path / "twins" / "run_1" / "log.txt").read_text()
    events = read_events(tmp_path / "twins" / "events.jsonl")
    starts = [(event["run"], event["attempt"]) for event in events if event["event"] == "run_started"]
    assert sorted(starts) == [(0, 1), (1, 1), (1, 2)]
    with flannel_pl.open_recording(tmp_path / "twins") as recording:
        assert recording.run(1).steps[:].tolist() == list(range(301))


def wait_until(condition: Any, *, timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited too long"
        time.sleep(0.1)


def test_plan_says_what_fit_would_do_and_does_nothing(
    small_data: SmallData, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "plan",
        *small_data.arguments,
        "--config",
        str(config),
        "--experiment.output_dir",
        str(tmp_path / "out"),
    ]
    assert main([*command, "--trainer.devices", "2"]) == 0
    plan = capsys.readouterr().out
    assert "10 to train, 0 finished" in plan
    assert "cpu x 2" in plan
    assert not (tmp_path / "out").exists()


def test_runs_are_gathered_while_others_train_and_shards_can_be_dropped(
    small_data: SmallData, config: Path, tmp_path: Path
) -> None:
    arguments = ["--config", str(config), "--trainer.max_steps", "4", "--experiment.seeds", "1..6"]
    arguments += ["--trainer.devices", "2"]
    assert fit(small_data, tmp_path / "kept", *arguments) == 0
    assert fit(small_data, tmp_path / "dropped", *arguments, "--experiment.keep_shards", "false") == 0
    kept, dropped = tmp_path / "kept" / "twins", tmp_path / "dropped" / "twins"
    assert len(list(kept.glob("run_*/recording.safetensors"))) == 6
    assert not list(dropped.glob("run_*/recording.*"))
    events = [event["event"] for event in read_events(dropped / "events.jsonl")]
    assert events.index("run_gathered") < len(events) - 1 - events[::-1].index("run_started")
    with flannel_pl.open_recording(kept) as one, flannel_pl.open_recording(dropped) as other:
        for run in one:
            for name in run.names:
                assert run.tensor(name)[:].tobytes() == other.run(run.index).tensor(name)[:].tobytes()
    assert main(["verify", str(dropped)]) == 0
    before = {path: path.stat().st_mtime_ns for path in dropped.rglob("*")}
    assert fit(small_data, tmp_path / "dropped", *arguments, "--experiment.keep_shards", "false") == 0
    assert {path: path.stat().st_mtime_ns for path in dropped.rglob("*")} == before
