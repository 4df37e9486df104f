"""Where the files of an experiment are, whatever its record says."""

import json
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.experiment import ExperimentPaths, is_plain_name


def paths_of(folder: Path, text: str) -> ExperimentPaths:
    (folder / "experiment.json").write_text(text, encoding="utf-8")
    return ExperimentPaths.find(folder)


@pytest.mark.parametrize("name", ["flannel3", "a b", "caf\u00e9 'x'\n", "..a", "\udc80", "n" * 200])
def test_a_renamed_folder_keeps_the_names_of_its_files(tmp_path: Path, name: str) -> None:
    paths = paths_of(tmp_path, json.dumps({"name": name}))
    assert paths == ExperimentPaths(tmp_path, name)
    files = [paths.gathered, paths.growing, paths.growing_notes, paths.growing_moved, paths.index]
    for path in files:
        path.touch()
    assert len(set(files)) == len(files)
    assert {path.name for path in tmp_path.iterdir()} == {
        "experiment.json",
        *(f"{name}.safetensors{ending}" for ending in ("", ".partial", ".gathered.json", ".moved")),
        f"{name}.safetensors.index.json",
    }


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc/x", "a/b", "a\0b", "\ud800", "n" * 201, "live_dead_tokens", 7, None, ["x"]],
)
def test_a_name_that_is_none_is_not_believed(tmp_path: Path, name: Any) -> None:
    assert not is_plain_name(name)
    assert paths_of(tmp_path, json.dumps({"name": name})) == ExperimentPaths(tmp_path, tmp_path.name)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "7", "[" * 100_000, '{"name": ' * 100_000, "1" * 10_000]
)
def test_a_damaged_record_gives_the_folders_name(tmp_path: Path, text: str) -> None:
    assert paths_of(tmp_path, text) == ExperimentPaths(tmp_path, tmp_path.name)


def test_no_record_gives_the_folders_name(tmp_path: Path) -> None:
    assert ExperimentPaths.find(tmp_path) == ExperimentPaths(tmp_path, tmp_path.name)
    (tmp_path / "experiment.json").write_bytes(b"\xff")
    assert ExperimentPaths.find(tmp_path).name == tmp_path.name
