"""A run that ends on purpose before its last step is done with the rows it has, and everything says so."""

import os
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.experiment import ExperimentPaths, RunPaths
from flannel_pl.launch.events import read_events
from flannel_pl.launch.status import read_status
from flannel_pl.paths import header_copy_of
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.formats.safetensors.layout import FILLER, read_layout
from flannel_pl.recording.writing.journal import Journal
from tests.conftest import SmallData
from tests.recording import format_reader
from tests.training.test_resume import StopAfter

STEPS = 30
CALLBACK = "--trainer.callbacks+="
OURS = "tests.training.ending_classes"

ENDINGS = {
    "max_epochs": (["--trainer.max_epochs", "2"], 14, "max_epochs 2"),
    "EarlyStopping": (
        [
            *(f"{CALLBACK}EarlyStopping", "--trainer.callbacks.monitor", "loss"),
            *("--trainer.callbacks.patience", "2", "--trainer.callbacks.min_delta", "100"),
        ],
        21,
        "EarlyStopping: Monitored metric loss did not improve in the last 2 records",
    ),
    "should_stop": ([f"{CALLBACK}{OURS}.StopBySeed"], 7, "a callback set trainer.should_stop"),
    "every fourth": (["--trainer.max_epochs", "2", "--recorder.every_n_steps", "4"], 14, "max_epochs 2"),
    "all rows": (
        ["--trainer.max_epochs", "2", "--recorder.every_n_steps", "4", "--trainer.max_steps", "15"],
        14,
        "max_epochs 2",
    ),
}


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> StopAfter:
    return StopAfter(monkeypatch)


def words(data: SmallData, folder: Path, *arguments: str) -> list[str]:
    """A fit of epochs of seven steps."""
    command = [*data.arguments, "--trainer.max_steps", str(STEPS), "--trainer.limit_train_batches", "7"]
    command += ["--launch.checkpoint_every", "5", "--launch.threads_per_run", "1"]
    command += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    command += ["--trainer.log_every_n_steps", "1", "--experiment.output_dir", str(folder)]
    return [*command, "--experiment.name", "early", *arguments]


def rows_of(folder: Path, run: int = 0, *, num_rows: int | None = None) -> dict[str, bytes]:
    with flannel_pl.open_recording(folder) as recording:
        of_run = recording.run(run)
        return {name: of_run.tensor(name)[:num_rows].tobytes() for name in of_run.names}


@pytest.mark.parametrize("kind", ENDINGS)
def test_a_run_that_ends_on_purpose_is_done(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    arguments, step, reason = ENDINGS[kind]
    assert main(["fit", *words(small_data, tmp_path, *arguments)]) == 0
    said = capsys.readouterr().err
    paths = ExperimentPaths(tmp_path / "early", "early")
    run = paths.run(0)
    assert not run.partial.exists()
    assert [at for at, _, _ in run.checkpoints()] == [step]
    layout = read_layout(run.recording)
    steps = int(arguments[-1]) if kind == "all rows" else STEPS
    ended = layout.flannel["ended"]
    assert (ended["step"], ended["planned_steps"]) == (step, steps)
    assert ended["reason"].startswith(reason)
    every = 4 if "every" in str(arguments) else 1
    num_rows = 1 + step // every
    assert layout.flannel["num_rows"] == num_rows
    with safe_open(run.recording, framework="pt") as file:
        assert file.get_tensor("recorded_steps").tolist() == list(range(0, step + 1, every))
        assert file.get_tensor("embeddings").shape[0] == num_rows
        fillers = [key for key in file.keys() if key.startswith(FILLER)]  # noqa: SIM118
    assert bool(fillers) == (kind != "all rows")
    entry = Journal(run.journal).read()
    assert entry is not None
    assert (entry.state, entry.num_rows, entry.rows_written) == ("done", num_rows, num_rows)
    (status,) = read_status(paths.folder).runs
    assert (status.state, status.step, status.num_rows, status.steps_left) == ("done", step, num_rows, 0)
    assert f"flannel-pl: ended early at step {step} of {steps} ({reason}" in said
    assert f"ended early at step {step} of {steps}" in run.log.read_text()
    events = [event for event in read_events(paths.events) if event["event"] == "ended_early"]
    assert [(event["step"], event["planned_steps"]) for event in events] == [(step, steps)]
    capsys.readouterr()
    assert main(["status", str(paths.folder)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"run 0: ended early at step {step} of {steps} ({reason}" in shown
    assert main(["info", str(paths.folder)]) == 0
    shown = capsys.readouterr().out
    assert FILLER not in shown
    assert f"ended early at step {step} of {steps} ({reason}" in shown
    assert main(["verify", str(paths.folder)]) == 0
    before = {path: path.stat().st_mtime_ns for path in paths.folder.rglob("*")}
    assert main(["fit", *words(small_data, tmp_path, *arguments)]) == 0
    assert "finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in paths.folder.rglob("*")} == before


def test_its_rows_are_those_of_a_longer_run(small_data: SmallData, tmp_path: Path) -> None:
    assert main(["fit", *words(small_data, tmp_path / "whole")]) == 0
    for kind in ("max_epochs", "EarlyStopping", "should_stop"):
        arguments, step, _ = ENDINGS[kind]
        assert main(["fit", *words(small_data, tmp_path / kind, *arguments)]) == 0
        whole = rows_of(tmp_path / "whole" / "early", num_rows=step + 1)
        assert rows_of(tmp_path / kind / "early") == whole, kind
        assert rows_of(tmp_path / kind / "early" / "run_0") == whole, kind


# 1000 steps of one sequence each are in one epoch of the whole text, and Lightning is told to make but one.
@pytest.mark.parametrize("batches", [["4000", "7", "4"], ["1000", "null", "1"]])
def test_a_time_limit_of_its_own_ends_a_run(
    small_data: SmallData, tmp_path: Path, batches: list[str]
) -> None:
    keys = ("--trainer.max_steps", "--trainer.limit_train_batches", "--data.batch_size")
    arguments = ["--trainer.max_time", "00:00:00:01"]
    arguments += [word for pair in zip(keys, batches, strict=True) for word in pair]
    assert main(["fit", *words(small_data, tmp_path, *arguments)]) == 0
    run = RunPaths(tmp_path / "early" / "run_0")
    layout = read_layout(run.recording)
    ended = layout.flannel["ended"]
    assert 0 < ended["step"] < int(batches[0])
    assert ended["reason"] == "max_time 0:00:01"
    assert layout.flannel["num_rows"] == ended["step"] + 1
    if hasattr(os.stat_result, "st_blocks"):
        assert run.recording.stat().st_blocks * 512 < layout.used_bytes + 2**20 < layout.total_bytes
    other = [*arguments, "--trainer.max_time", "00:00:00:09"]
    assert main(["fit", *words(small_data, tmp_path, *other)]) == 2  # another experiment, whatever is done


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--experiment.keep_shards", "false"], marks=pytest.mark.slow),
        pytest.param([], marks=pytest.mark.slow),
        ["--experiment.gather", "index"],
    ],
)
def test_several_seeds_end_at_different_steps(
    small_data: SmallData, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--experiment.seeds", "1..3", f"{CALLBACK}{OURS}.StopBySeed", *more]
    arguments += ["--launch.runs_per_device", "1"]  # so that gathering begins with the first
    assert main(["fit", *words(small_data, tmp_path, *arguments)]) == 0
    out = capsys.readouterr().out
    for run, step in enumerate((5, 7, 9)):
        assert f"run {run}: ended early at step {step} of {STEPS} (a callback set trainer.should_stop)" in out
    assert "retry" not in out
    folder = tmp_path / "early"
    assert main(["verify", str(folder)]) == 0
    with flannel_pl.open_recording(folder) as recording:
        assert [run.num_rows for run in recording] == [6, 8, 10]
        assert not [key for key in recording.tensors if key.startswith(FILLER)]
    assert [run.step for run in read_status(folder).runs] == [5, 7, 9]
    assert main(["report", str(folder), "--out", str(tmp_path / "report")]) == 0
    assert main(["compare", str(folder), str(folder)]) == 0
    for shard in folder.glob("run_*/recording.safetensors"):
        prefix = f"{shard.parent.name}_" if "index" in more else ""
        format_reader.check_shard(format_reader.read(shard), prefix=prefix)
    gathered = folder / "early.safetensors"
    if more == ["--experiment.keep_shards", "false"]:  # then a plan was made before all ends were known
        assert format_reader.read(gathered).fillers
    if not more:
        assert main(["gather", str(folder)]) == 0
        assert not format_reader.read(gathered).fillers
    if gathered.exists():
        format_reader.check_gathered(format_reader.read(gathered))


@pytest.mark.parametrize(
    ("counter", "end", "last_step"), [("CountEpochs", 3, 21), ("CountSteps", 17, 17)], ids=["epochs", "steps"]
)
def test_interrupted_runs_end_where_undisturbed_ones_do(
    small_data: SmallData, tmp_path: Path, stop_after: StopAfter, counter: str, end: int, last_step: int
) -> None:
    """Also if the interruption comes with the last step of an epoch, at whose end a callback counts."""
    arguments = [f"{CALLBACK}{OURS}.{counter}", "--trainer.callbacks.end", str(end)]
    assert main(["fit", *words(small_data, tmp_path / "calm", *arguments)]) == 0
    for step in (3, 7, 14, 17):
        stop_after(step)
        ends = step == last_step  # then it is done, not interrupted
        assert main(["fit", *words(small_data, tmp_path / "stopped", *arguments)]) == (0 if ends else 143)
        stop_after.undo()
    assert main(["fit", *words(small_data, tmp_path / "stopped", *arguments)]) == 0
    calm, stopped = (tmp_path / name / "early" / "run_0" for name in ("calm", "stopped"))
    assert read_layout(RunPaths(calm).recording).flannel["ended"]["step"] == last_step
    assert rows_of(stopped) == rows_of(calm)


class Cut(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "k"), [("fsync", 1), ("replace", 1), ("fsync", 3), ("fsync", 4), ("replace", 2), ("fsync", 5)]
)
def test_an_end_that_was_cut_off_is_completed(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, k: int
) -> None:
    """At each of the calls that make something durable, as if the process were killed there."""
    from flannel_pl.recording.writing import writer

    arguments = [*ENDINGS["max_epochs"][0], "--experiment.gather", "none"]
    calls = [0]
    real_finish, real = writer.RecordingWriter.finish, getattr(os, name)

    def dies(*given: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == k:
            raise Cut
        return real(*given, **options)

    def finish(self: writer.RecordingWriter, ended: Any = None) -> None:
        self._join()
        with monkeypatch.context() as patch:
            patch.setattr(os, name, dies)
            real_finish(self, ended)

    with monkeypatch.context() as patch:
        patch.setattr(writer.RecordingWriter, "finish", finish)
        code = main(["fit", *words(small_data, tmp_path, *arguments)])
    paths = RunPaths(tmp_path / "early" / "run_0")
    assert (code == 0) == (calls[0] < k)
    assert main(["fit", *words(small_data, tmp_path, *arguments)]) == 0
    layout = read_layout(paths.recording)
    assert (layout.flannel["num_rows"], layout.flannel["ended"]["step"]) == (15, 14)
    assert [one["first_row"] for one in layout.flannel["attempts"]] == [0]
    assert verify(paths.folder).ok
    assert not header_copy_of(paths.partial).exists()
    assert [step for step, _, _ in paths.checkpoints()] == [14]


def test_a_training_that_ends_before_its_first_step_is_no_recording(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--trainer.max_time", "00:00:00:00"]
    assert main(["fit", *words(small_data, tmp_path, *arguments)]) == 2
    assert "max_time" in capsys.readouterr().err
