"""A column that this version has never heard of is a column: shown, checked, gathered and read."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flannel_pl.analysis.comparing.compare import compare
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.formats.columns import ColumnSpec, share_columns
from flannel_pl.recording.formats.safetensors.layout import read_layout
from flannel_pl.recording.gathering.gather import gather
from flannel_pl.recording.info import describe_recording
from flannel_pl.recording.reader import RunRecording, open_recording
from tests.recording.damage import flipped
from tests.recording.recording_samples import make_experiment
from tests.recording.resealed import reseal

HIDDEN = ColumnSpec(
    "hidden_mean/spread",
    "F32",
    (3, 2),
    ("layer", "part"),
    taken="forward",
    row0="nan",
    meaning="spread of what nobody has named yet",
    quantity="my_lab.Hidden",
    labels={"part": ("mean", "spread")},
)


def said(path: Path) -> str:
    return "\n".join(line for part in verify(path).parts for line in part.damage)


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentPaths:
    return make_experiment(tmp_path / "x", num_runs=2, more=lambda run: [HIDDEN])


@pytest.mark.parametrize("mode", ["none", "single", "index"])
def test_an_unknown_column_is_shown_and_read(tmp_path: Path, mode: str) -> None:
    experiment = make_experiment(tmp_path / "x", num_runs=2, gather=mode, more=lambda run: [HIDDEN])
    raw = read_layout(experiment.run(1).recording)
    start = raw.offsets[next(key for key in raw.tensors if key.endswith(HIDDEN.name))]
    stored = experiment.run(1).recording.read_bytes()[start:][: 7 * 24]
    if mode != "none":
        gather(experiment.folder)
    assert verify(experiment.folder).ok
    assert HIDDEN.meaning in describe_recording(experiment.folder)
    with open_recording(experiment.folder) as recording:
        run = recording.run(1)
        assert run.columns[HIDDEN.name] == HIDDEN
        assert np.asarray(run.tensor(HIDDEN.name)[:]).tobytes() == stored


def test_damage_in_an_unknown_column_is_found(experiment: ExperimentPaths) -> None:
    path = experiment.run(0).recording
    layout = read_layout(path)
    with flipped(path, layout.offsets[HIDDEN.name] + 3 * HIDDEN.row_bytes):
        assert "hidden_mean/spread is not as its checksum says in row 3" in said(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sizes": [2, 3]}, "hidden_mean/spread is F32 of shape (7, 3, 2), expected F32 of shape (7, 2, 3)"),
        ({"dtype": "I32"}, "hidden_mean/spread is F32 of shape (7, 3, 2), expected I32 of shape (7, 3, 2)"),
    ],
)
def test_a_list_that_contradicts_the_file(
    experiment: ExperimentPaths, change: dict[str, Any], sentence: str
) -> None:
    path = experiment.run(0).recording
    reseal(path, say=lambda said: said["columns"][HIDDEN.name].update(change))
    assert sentence in said(path)


def test_a_column_that_the_list_lacks(experiment: ExperimentPaths) -> None:
    path = experiment.run(0).recording
    reseal(path, say=lambda said: said["columns"].pop(HIDDEN.name))
    assert "the columns are" in said(path)
    reseal(path, say=lambda said: said["columns"].pop("grads"))
    assert "its columns lack grads" in said(path)


def test_runs_with_other_columns_are_gathered(tmp_path: Path) -> None:
    wider = dataclasses.replace(HIDDEN, sizes=(5, 2), meaning="wider")
    columns = [[HIDDEN], [wider], []]
    paths = make_experiment(tmp_path / "x", more=lambda run: columns[run])
    gather(paths.folder)
    said = read_layout(paths.gathered).flannel
    assert said["runs"][1]["columns"] == {HIDDEN.name: {"meaning": "wider", "sizes": [5, 2]}}
    assert "columns" not in said["runs"][0]
    assert "columns" not in said["runs"][2]
    assert verify(paths.folder).ok
    with open_recording(paths.gathered) as recording:
        assert [run.columns.get(HIDDEN.name) for run in recording] == [HIDDEN, wider, None]


def test_what_a_run_lacks_is_said_of_it() -> None:
    columns = ({"x": {"dtype": "F32", "dims": [], "sizes": [], "parameter": "w"}}, {"x": {"dtype": "F32"}})
    shared, runs = share_columns({"columns": one} for one in columns)
    assert shared == columns[0]
    assert runs == [{}, {"columns": {"x": {"parameter": ""}}}]


def test_many_columns_are_compared_in_a_time_that_grows_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [
        dataclasses.replace(HIDDEN, name=f"many/{number}", sizes=(), dims=(), labels={})
        for number in range(150)
    ]
    paths = make_experiment(tmp_path / "x", num_runs=1, more=lambda run: many)
    calls: list[str] = []
    original = RunRecording.tensor

    def counted(self: RunRecording, name: str) -> Any:
        calls.append(name)
        return original(self, name)

    monkeypatch.setattr(RunRecording, "tensor", counted)
    assert compare(paths.folder, paths.folder).equal
    assert len(calls) < 40 * len(many)
