"""What a folder's record says must be there is looked for: a deleted file is named, and is exit code 1."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flannel_pl.__main__ import main
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.gathering.gather import gather
from tests.recording.gathering_samples import change_config
from tests.recording.recording_samples import make_experiment

Files = Callable[[ExperimentPaths], list[Path]]


def finished(folder: Path, *, mode: str, keep_shards: bool) -> ExperimentPaths:
    paths = make_experiment(folder / mode, gather=mode, num_runs=2)
    change_config(paths, keep_shards=keep_shards)
    if mode != "none":
        gather(paths.folder)
    return paths


ALWAYS: Files = lambda paths: [paths.record, paths.masks]  # noqa: E731
SHARDS: Files = lambda paths: [paths.run(0).recording, paths.run(1).recording]  # noqa: E731


@pytest.mark.parametrize(
    ("mode", "keep_shards", "files"),
    [
        ("single", True, lambda paths: [*ALWAYS(paths), *SHARDS(paths), paths.gathered]),
        ("single", False, lambda paths: [*ALWAYS(paths), paths.gathered]),
        ("index", True, lambda paths: [*ALWAYS(paths), *SHARDS(paths), paths.index, paths.index_extras]),
        ("index", False, lambda paths: [*ALWAYS(paths), *SHARDS(paths), paths.index, paths.index_extras]),
        ("none", True, lambda paths: [*ALWAYS(paths), *SHARDS(paths)]),
        ("none", False, lambda paths: [*ALWAYS(paths), *SHARDS(paths)]),
    ],
)
def test_a_file_that_is_deleted_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, keep_shards: bool, files: Files
) -> None:
    paths = finished(tmp_path, mode=mode, keep_shards=keep_shards)
    expected = files(paths)
    assert verify(paths.folder).ok
    there = [path for path in paths.folder.rglob("*.safetensors*") if path.is_file()]
    assert {*there, paths.record} == set(expected)  # so nothing else is to be looked for
    for path in expected:
        path.rename(tmp_path / "away")
        capsys.readouterr()
        assert main(["verify", str(paths.folder)]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if line.startswith("missing")] == [f"missing    {path}"]
        assert "every row is there" not in lines[-1]
        (tmp_path / "away").rename(path)
    assert verify(paths.folder).ok


def test_what_is_said_of_it(tmp_path: Path) -> None:
    paths = finished(tmp_path, mode="single", keep_shards=True)
    paths.gathered.unlink()
    report = verify(paths.folder)
    words = "it is not there, although every run is finished; make it with: flannel-pl gather"
    assert report.damage[-1].startswith(words)
    paths.run(1).recording.unlink()
    assert verify(paths.folder).damage == (
        "it is not there, although the run was finished; bring it back, or flannel-pl fit records it again",
        "it is not there, although every run was finished; bring it back from a copy",
    )


def test_nothing_but_a_record_is_left(tmp_path: Path) -> None:
    paths = finished(tmp_path, mode="single", keep_shards=False)
    paths.gathered.unlink()
    assert [(part.state, part.path) for part in verify(paths.folder).parts] == [("missing", paths.gathered)]


def test_a_run_that_was_never_finished_is_not_missing(tmp_path: Path) -> None:
    paths = finished(tmp_path, mode="single", keep_shards=True)
    paths.gathered.unlink()
    paths.run(1).recording.unlink()
    paths.run(1).journal.unlink()
    assert [part.state for part in verify(paths.folder).parts] == ["ok", "unfinished"]


def test_runs_without_a_record(tmp_path: Path) -> None:
    paths = finished(tmp_path, mode="none", keep_shards=True)
    paths.record.unlink()
    report = verify(paths.folder)
    assert [part.state for part in report.parts] == ["ok", "ok", "missing"]
    assert report.damage == (
        "it is not there, so nothing tells what else should be; bring it back, or verify single files",
    )
    assert verify(paths.run(1).folder).ok
