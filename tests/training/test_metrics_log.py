"""metrics.csv of a run that was interrupted is that of an undisturbed one."""

import csv
import errno
import json
import os
import re
from pathlib import Path

import pytest

from flannel_pl.errors import RunError
from flannel_pl.training.metrics_log import MetricsLog
from tests.conftest import SmallData
from tests.training.test_resume import StopAfter, fit, stop_after

__all__ = ["stop_after"]


def metrics_of(folder: Path) -> Path:
    return folder / "flannel" / "run_0" / "metrics.csv"


EVERY = "--trainer.log_every_n_steps"
SECOND = json.dumps(
    [
        {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "other"}},
        {"class_path": "flannel_pl.training.metrics_log.MetricsLog", "init_args": {"save_dir": "."}},
    ]
)

OPTIONS = [
    pytest.param([EVERY, "3"], id="every 3rd"),
    pytest.param([EVERY, "20"], id="no row before the stops"),
    pytest.param([EVERY, "2", "--trainer.accumulate_grad_batches", "3"], id="accumulate"),
    pytest.param([EVERY, "1", "--data.batch_size", "400"], id="several epochs"),
    pytest.param([EVERY, "2", "--trainer.callbacks+=LearningRateMonitor"], id="another callback logs too"),
    pytest.param([EVERY, "2", "--trainer.logger", SECOND], id="another logger comes first"),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_stopped_twice_and_gone_on(
    small_data: SmallData, tmp_path: Path, stop_after: StopAfter, options: list[str]
) -> None:
    assert fit(small_data, tmp_path / "calm", *options) == 0
    for step in (6, 13):
        stop_after(step)
        assert fit(small_data, tmp_path / "stopped", *options) == 143
        stop_after.undo()
    assert fit(small_data, tmp_path / "stopped", *options) == 0
    calm = metrics_of(tmp_path / "calm")
    assert metrics_of(tmp_path / "stopped").read_bytes() == calm.read_bytes()
    with calm.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    every = int(options[1])
    assert [int(row["step"]) + 1 for row in rows] == list(range(every, 31, every))
    assert not list(tmp_path.rglob("*.kept"))


@pytest.mark.parametrize("spoil", ["torn line", "killed while it goes on", "both checkpoints"])
def test_a_crash_between_checkpoints(
    small_data: SmallData, tmp_path: Path, stop_after: StopAfter, spoil: str
) -> None:
    assert fit(small_data, tmp_path / "calm", EVERY, "1") == 0
    stop_after(13, crash=True)  # the checkpoint is of step 10
    assert fit(small_data, tmp_path / "hurt", EVERY, "1") == 1
    stop_after.undo()
    path = metrics_of(tmp_path / "hurt")
    assert len(path.read_bytes().splitlines()) == 1 + 12
    if spoil == "torn line":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        path.rename(path.with_name("metrics.csv.kept"))
    if spoil == "both checkpoints":
        for checkpoint in path.parent.glob("*.ckpt"):
            checkpoint.unlink()
    assert fit(small_data, tmp_path / "hurt", EVERY, "1") == 0
    assert path.read_bytes() == metrics_of(tmp_path / "calm").read_bytes()
    assert not list(tmp_path.rglob("*.kept"))


def test_rows_that_wait_in_memory_reach_the_file_before_a_checkpoint_does(
    small_data: SmallData, tmp_path: Path, stop_after: StopAfter, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [EVERY, "2", "--trainer.callbacks+=LearningRateMonitor"]
    assert fit(small_data, tmp_path / "calm", *options) == 0
    stop_after(10)
    monkeypatch.setattr(MetricsLog, "finalize", lambda self, status: None)  # as if killed
    assert fit(small_data, tmp_path / "killed", *options) == 143
    stop_after.undo()
    assert fit(small_data, tmp_path / "killed", *options) == 0
    assert metrics_of(tmp_path / "killed").read_bytes() == metrics_of(tmp_path / "calm").read_bytes()


HEADER = b"epoch,loss,step\r\n"
ROWS = [b"0,%d.5,%d\r\n" % (step, step) for step in range(5)]


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
@pytest.mark.parametrize(
    ("found", "kept"),
    [
        pytest.param(HEADER + b"".join(ROWS), ROWS[:3], id="later rows"),
        pytest.param(HEADER + b"".join(ROWS[:3]) + b"0,7.", ROWS[:3], id="torn line"),
        pytest.param(HEADER + ROWS[0] + b"0,1.", ROWS[:1], id="torn early"),
        pytest.param(HEADER + ROWS[0] + bytes(2**21), ROWS[:1], id="zeros"),
        pytest.param(HEADER, [], id="no row"),
        pytest.param(b"epo", [], id="torn header"),
        pytest.param(None, [], id="no file"),
    ],
)
def test_whatever_is_found_the_file_is_a_table_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], found: bytes | None, kept: list[bytes]
) -> None:
    path = tmp_path / "metrics.csv"
    if found is not None:
        path.write_bytes(found)
    log = MetricsLog(str(tmp_path))
    log.prepare(going_on=True)
    log.go_on(3)
    assert log.num_rows == len(kept)
    log.log_metrics({"epoch": 1, "loss": 0.25}, step=7)
    log.save()
    assert path.read_bytes() == HEADER + b"".join(kept) + b"1,0.25,7\r\n"
    assert list(tmp_path.iterdir()) == [path]
    complaint = f"{path} has {len(kept)} of the 3 rows before the checkpoint; the others are lost"
    assert (complaint in capsys.readouterr().err) == (len(kept) < 3)


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_column_that_comes_later_is_added_to_the_rows_that_were_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(HEADER + ROWS[0])
    log = MetricsLog(str(tmp_path))
    log.prepare(going_on=True)
    log.go_on(1)
    log.log_metrics({"epoch": 0, "loss": 1.0, "rate": 2.0}, step=1)
    log.save()
    assert (tmp_path / "metrics.csv").read_bytes() == b"epoch,loss,rate,step\r\n0,0.5,,0\r\n0,1.0,2.0,1\r\n"


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_failing_disk_is_explained_and_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(HEADER + ROWS[0] + ROWS[1])
    cannot = rf"Cannot write {re.escape(str(path))}: Input/output error"

    def refused(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refused)
        with pytest.raises(RunError, match=cannot):
            MetricsLog(str(tmp_path)).prepare(going_on=True)
    log = MetricsLog(str(tmp_path))
    log.prepare(going_on=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refused)
        with pytest.raises(RunError, match=cannot):
            log.go_on(1)
    log = MetricsLog(str(tmp_path))
    log.prepare(going_on=True)
    log.go_on(1)
    assert path.read_bytes() == HEADER + ROWS[0]
    path.unlink()
    path.mkdir()
    log.log_metrics({"epoch": 0, "loss": 1.0}, step=1)
    with pytest.raises(RunError, match=rf"Cannot write {re.escape(str(path))}: Is a directory"):
        log.save()


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_run_that_starts_anew_has_a_new_file(tmp_path: Path) -> None:
    for name in ("metrics.csv", "metrics.csv.kept"):
        (tmp_path / name).write_bytes(HEADER + ROWS[0])
    log = MetricsLog(str(tmp_path))
    log.prepare(going_on=False)
    log.log_metrics({"epoch": 0, "loss": 1.0}, step=0)
    log.save()
    assert (tmp_path / "metrics.csv").read_bytes() == HEADER + b"0,1.0,0\r\n"
    assert log.num_rows == 1
    assert not (tmp_path / "metrics.csv.kept").exists()


@pytest.mark.parametrize(("steps", "rows"), [(3, [0, 1, 2]), (40, [3, 7, 11, 15, 19, 23, 27, 31, 35, 39])])
def test_short_runs_have_rows(small_data: SmallData, tmp_path: Path, steps: int, rows: list[int]) -> None:
    assert fit(small_data, tmp_path, "--trainer.max_steps", str(steps)) == 0
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == rows
