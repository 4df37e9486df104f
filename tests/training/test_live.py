"""Live metrics: logged while training goes on, they are what the report says of the finished file."""

import csv
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from safetensors.numpy import load_file

import flannel_pl
from flannel_pl import StepRecorder
from flannel_pl.__main__ import main
from flannel_pl.analysis.measuring.one_run import measure_run
from flannel_pl.errors import UserError
from flannel_pl.experiment import RunPaths
from flannel_pl.launch.status import read_status
from flannel_pl.metrics.row_metrics import ROW_METRICS, Moment, RowMetric
from flannel_pl.recording.writing.journal import Journal
from flannel_pl.training.metrics_log import MetricsLog
from tests.conftest import SMALL_VOCAB_SIZE, SmallData
from tests.training.test_from_python import half
from tests.training.test_recorder import Bigram, batches, fit
from tests.training.test_resume import SCALED, STEPS, StopAfter, bits_of, stop_after
from tests.training.test_resume import fit as fit_runs

__all__ = ["stop_after"]

NAMES = ["origin_radius", "centroid_radius", "frozen_fraction", "speed"]
LIVE = ["--recorder.live", json.dumps(NAMES)]
IN_REPORT = {"speed": "token_speed"}
EVERY = "--trainer.log_every_n_steps"


def logged(path: Path) -> dict[int, dict[str, float]]:
    """Returns what a metrics.csv has of live metrics: step -> name -> value."""
    rows: dict[int, dict[str, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if values := {name: float(value) for name, value in row.items() if "/" in name and value}:
                assert int(row["step"]) not in rows, "a row twice"
                rows[int(row["step"])] = values
    return rows


def of_report(folder: Path, every: int, *, sets: tuple[str, ...]) -> dict[int, dict[str, float]]:
    """Returns what the report has of the rows that are due; without what is undefined."""
    with flannel_pl.open_recording(folder) as recording:
        measures = measure_run(recording, 0)
    steps = measures.steps_R.tolist()
    due = [0] + [row for row in range(1, len(steps)) if steps[row] // every > steps[row - 1] // every]
    return {
        steps[row]: {
            f"{one}/{name}": measures.series[one][IN_REPORT.get(name, name)][row]
            for one in sets
            for name in NAMES
            if not np.isnan(measures.series[one][IN_REPORT.get(name, name)][row])
        }
        for row in due
    }


BOTH = ("dead", "live")
OPTIONS = [
    pytest.param([EVERY, "1"], 1, BOTH, id="bfloat16"),
    pytest.param([EVERY, "1", "--model.param_dtype", "float32"], 1, BOTH, id="float32"),
    pytest.param([EVERY, "3", "--recorder.tokens", "dead"], 3, ("dead",), id="dead-every-3rd"),
    pytest.param(
        [EVERY, "3", "--recorder.every_n_steps", "2", "--model.param_dtype", "float32"],
        3,
        BOTH,
        id="2nd-step",
    ),
    pytest.param([EVERY, "7", "--recorder.dtypes", "{embeddings: float32}"], 7, BOTH, id="wider"),
    pytest.param(
        [
            *(EVERY, "1", "--trainer.precision", "null", "--trainer.plugins", SCALED),
            *("--model.param_dtype", "float32"),
        ],
        1,
        BOTH,
        id="skipped-steps",
    ),
]


@pytest.mark.parametrize(("options", "every", "sets"), OPTIONS)
def test_equal_to_the_report_also_when_stopped_and_gone_on(
    small_data: SmallData,
    tmp_path: Path,
    stop_after: StopAfter,
    options: list[str],
    every: int,
    sets: tuple[str, ...],
) -> None:
    calm, hurt = tmp_path / "calm", tmp_path / "hurt"
    assert fit_runs(small_data, calm, *options, *LIVE) == 0
    for step, crash in ((7, False), (18, True)):  # the checkpoint before the crash is of step 15
        stop_after(step, crash=crash)
        if crash:  # as if killed: what is not in the file by then is lost
            stop_after.monkeypatch.setattr(MetricsLog, "finalize", lambda self, status: None)
        assert fit_runs(small_data, hurt, *options, *LIVE) == (1 if crash else 143)
        stop_after.undo()
    assert fit_runs(small_data, hurt, *options, *LIVE) == 0
    assert fit_runs(small_data, tmp_path / "plain", *options) == 0
    for folder in (calm, hurt):
        expected = of_report(folder / "flannel" / "run_0", every, sets=sets)
        assert logged(folder / "flannel" / "run_0" / "metrics.csv") == expected
        assert bits_of(folder) == bits_of(tmp_path / "plain")
    texts = [(folder / "flannel" / "run_0" / "metrics.csv").read_bytes() for folder in (calm, hurt)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_one_of_your_own_in_several_runs_at_once(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside float64 numpy; each run imports it by itself."""
    folder = Path(__file__).parents[2] / "examples" / "own_metric"
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(folder)
    given = ["--experiment.seeds", "1..3", EVERY, "1", "--recorder.live", "[alignment.alignment, speed]"]
    given += ["--launch.runs_per_device", "3", "--model.param_dtype", "float32"]
    assert fit_runs(small_data, tmp_path, *given) == 0
    for index in range(3):
        run_folder = tmp_path / "flannel" / f"run_{index}"
        (path,) = run_folder.rglob("metrics.csv")
        found = logged(path)
        with flannel_pl.open_recording(run_folder) as recording:
            W_RVD = np.asarray(recording.run(index).embeddings[:]).astype(np.float64)
        dead = load_file(small_data.masks)["dead_mask"]
        for step in range(1, len(W_RVD)):
            dW_SD = (W_RVD[step] - W_RVD[step - 1])[dead]
            along_S = dW_SD @ dW_SD.mean(axis=0)
            lengths_S = np.linalg.norm(dW_SD, axis=1) * np.linalg.norm(dW_SD.mean(axis=0))
            expected = np.mean(along_S[lengths_S > 0] / lengths_S[lengths_S > 0])
            assert found[step]["dead/alignment"] == pytest.approx(expected, rel=1e-4), (index, step)


def test_status_shows_the_newest(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit_runs(small_data, tmp_path, EVERY, "5", *LIVE) == 0
    expected = of_report(tmp_path / "flannel" / "run_0", 5, sets=BOTH)[STEPS]
    (run,) = read_status(tmp_path / "flannel").runs
    assert run.live == expected
    monkeypatch.setenv("COLUMNS", "240")
    assert main(["status", str(tmp_path / "flannel")]) == 0
    said = capsys.readouterr().out
    assert all(f"{value:.4g}" in said and name in said for name, value in expected.items())


origin_radius = RowMetric(lambda tokens: 42.0, "a name that is taken")

REFUSED = [
    (
        ["--recorder.live", "[tests.training.test_live.origin_radius]"],
        "'tests.training.test_live.origin_radius', but origin_radius is one of flannel-pl's own; give yours",
    ),
    (["--recorder.live", "[radius]"], "recorder.live has 'radius', expected some of origin_radius, "),
    (
        ["--recorder.live", "[speed]", "--recorder.tensors", "[losses]"],
        "recorder.live measures embeddings, which recorder.tensors leaves out; add embeddings",
    ),
    (
        [*LIVE, "--recorder.dtypes", "{embeddings: bfloat16}", "--model.param_dtype", "float32"],
        "has frozen_fraction, but embeddings are float32 and recorder.dtypes has them rounded to bfloat16",
    ),
    ([*LIVE, EVERY, "0"], "recorder.live is logged every trainer.log_every_n_steps steps, but that is 0"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_refused_before_there_is_a_file(
    small_data: SmallData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    text: str,
) -> None:
    assert fit_runs(small_data, tmp_path / "runs", *options) == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Lightless:
    """Fails, as somebody's metric may."""

    def __call__(self, tokens: Moment) -> Any:
        raise ZeroDivisionError("no light")


class Leaving(Lightless):
    def __call__(self, tokens: Moment) -> Any:
        sys.exit(4)


class Numberless(Lightless):
    def __call__(self, tokens: Moment) -> Any:
        return tokens.stored_SD[0]


class Writing(Lightless):
    def __call__(self, tokens: Moment) -> Any:
        tokens.stored_SD[:] = 0
        return 1.0


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Lightless, r"failed with ZeroDivisionError: no light \(.*test_live\.py, line \d+\)"),
        (Leaving, r"failed with SystemExit: 4 \(.*test_live\.py, line \d+\)"),
        (Numberless, r"has measured ndarray of shape \(3,\), expected one number"),
        (Writing, r"failed with ValueError: assignment destination is read-only \(.*, line \d+\)"),
    ],
)
def test_a_metric_that_fails_ends_neither_training_nor_recording(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: type[Lightless],
    words: str,
) -> None:
    monkeypatch.setitem(ROW_METRICS, "light", RowMetric(kind(), "light", of_motion=True))
    events: list[Mapping[str, Any]] = []
    recorder = StepRecorder(
        tmp_path / "a",
        "table.weight",
        live=["light", "origin_radius"],
        note=lambda event, **fields: events.append({"event": event, **fields}),
    )
    logger = CSVLogger(tmp_path / "log", name="", version="")
    fit(recorder, steps=4, logger=logger, log_every_n_steps=1)
    assert (tmp_path / "a" / "recording.safetensors").exists()
    assert re.search(f"live metrics end at step 1: the metric light {words}; tra", capsys.readouterr().err)
    assert logged(tmp_path / "log" / "metrics.csv").keys() == {0}
    assert [event["event"] for event in events] == ["training_started", "live_metrics_failed"]
    entry = Journal(RunPaths(tmp_path / "a").journal).read()
    assert entry is not None
    assert entry.live == {}


def test_a_metric_is_a_line_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = RowMetric(lambda tokens: float(np.abs(tokens.W_SD).max()), "largest weight")
    monkeypatch.setitem(ROW_METRICS, "largest", largest)
    recorder = StepRecorder(tmp_path / "a", "table.weight", live=["largest"])
    fit(recorder, steps=2, logger=CSVLogger(tmp_path / "log", name="", version=""), log_every_n_steps=1)
    with flannel_pl.open_recording(tmp_path / "a") as recording:
        W_RVD = recording.run(0).embeddings[:].astype(np.float64)
    assert logged(tmp_path / "log" / "metrics.csv") == {
        step: {"all/largest": np.abs(W_RVD[step]).max()} for step in range(3)
    }


def test_in_a_script_that_goes_on(tmp_path: Path) -> None:
    """CSVLogger begins anew there; what it has are the rows that the first attempt has not logged."""
    options: dict[str, Any] = {"live": NAMES, "checkpoint_every": 2}
    checkpoint = half(StepRecorder(tmp_path / "a", "table.weight", **options))
    recorder = StepRecorder(tmp_path / "a", "table.weight", **options)
    logger = CSVLogger(tmp_path / "log", name="", version="")
    fit(recorder, steps=6, logger=logger, log_every_n_steps=1, ckpt_path=checkpoint)
    rows = logged(tmp_path / "log" / "metrics.csv")
    expected = of_report(tmp_path / "a", 1, sets=("all",))
    assert rows == {step: expected[step] for step in rows}
    assert {3, 4, 5, 6} <= rows.keys()


def test_scripts_are_told_of_their_arguments(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^live has 'radius', expected some of origin_radius"):
        StepRecorder(tmp_path / "a", "table.weight", live=["radius"])
    recorder = StepRecorder(tmp_path / "a", "table.weight", live="speed")
    with pytest.raises(UserError, match="live is logged every log_every_n_steps steps, but that is 0"):
        fit(recorder, steps=2, log_every_n_steps=0)


@pytest.mark.parametrize(
    ("parameter", "what"), [("head.bias", r"that is of shape \(12,\)"), (None, "there is none")]
)
def test_a_parameter_that_has_no_vectors_is_refused(tmp_path: Path, parameter: str | None, what: str) -> None:
    tensors = ["embeddings", "losses"]
    others = {"b": "head.bias"} if parameter is None else {}
    recorder = StepRecorder(tmp_path / "a", parameter, live=["speed"], tensors=tensors, parameters=others)
    with pytest.raises(UserError, match=f"a vector for each token, but {what}; leave"):
        fit(recorder, steps=2)


class Endless(torch.utils.data.IterableDataset[torch.Tensor]):
    """Of a length that nobody knows, as a stream is."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(batches(7))


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")
def test_of_unknown_length_with_accumulation(tmp_path: Path) -> None:
    recorder = StepRecorder(tmp_path / "a", "table.weight", live=NAMES)
    logger = CSVLogger(tmp_path / "log", name="", version="")
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        accumulate_grad_batches=2,
        callbacks=[recorder],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Bigram(), torch.utils.data.DataLoader(Endless(), batch_size=None))
    expected = of_report(tmp_path / "a", 1, sets=("all",))
    assert list(expected) == [0, 1, 2, 3, 4]
    assert logged(tmp_path / "log" / "metrics.csv") == expected


def test_every_logger_gets_the_rows(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loggers = [
        TensorBoardLogger(tmp_path / "board", name="", version=""),
        CSVLogger(tmp_path / "log", name="", version=""),
    ]
    recorder = StepRecorder(tmp_path / "a", "table.weight", live=NAMES)
    fit(recorder, steps=3, logger=loggers, log_every_n_steps=1)
    events = accumulator.EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    rows = logged(tmp_path / "log" / "metrics.csv")
    for name in rows[3]:
        seen = {event.step: event.value for event in events.Scalars(name)}
        assert seen == {step: np.float32(row[name]) for step, row in rows.items() if name in row}


PAGE = (Path(__file__).parents[2] / "docs" / "live.md").read_text(encoding="utf-8")


def test_the_pages_command_and_table(small_data: SmallData, tmp_path: Path) -> None:
    command = re.findall(r"```\n(flannel-pl fit.*?)```", PAGE, flags=re.DOTALL)[0]
    words = shlex.split(command.replace("\\\n", " "))[2:]
    config = Path(__file__).parents[2] / words[1]
    place = ["--experiment.output_dir", str(tmp_path), "--experiment.seeds", "42"]
    assert main(["fit", "--config", str(config), *small_data.arguments, *words[2:], *place]) == 0
    rows = logged(tmp_path / "quickstart" / "run_0" / "metrics.csv")
    assert list(rows) == list(range(0, 61, 5))
    named = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert {name for name, _ in named} == set(ROW_METRICS)
    assert dict(named) == {name: IN_REPORT.get(name, name) for name in ROW_METRICS}


def test_all_tokens_where_no_set_has_a_recorded_one(small_data: SmallData, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("1\n2\n3\n")
    assert fit_runs(small_data, tmp_path / "runs", EVERY, "10", "--recorder.tokens", str(ids), *LIVE) == 0
    folder = tmp_path / "runs" / "flannel" / "run_0"
    rows = logged(folder / "metrics.csv")
    with flannel_pl.open_recording(folder) as recording:
        masks = recording.masks
    sets = tuple(name for name in BOTH if masks[f"{name}_mask"][[1, 2, 3]].any())
    assert rows == of_report(folder, 10, sets=sets)
    assert len(masks["dead_mask"]) == SMALL_VOCAB_SIZE
