"""Experiments that earlier versions made go on, read and check as those of this one (`tests/stored`)."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from flannel_pl.__main__ import main
from flannel_pl.recording.reader import open_recording
from tests.stored.folders import EXPERIMENTS, arguments

SCHEMAS = sorted(folder for folder in (Path(__file__).parent / "stored").glob("schema*"))
FINISHED = [name for name, one in EXPERIMENTS.items() if one.cut_in_run is None]
CUT = [pytest.param(name, marks=pytest.mark.slow) for name in ("stopped", "killed")]
MIXED = ("--launch.mix_environments", "true")  # made by another version, perhaps on another processor


@pytest.fixture(params=SCHEMAS, ids=lambda folder: folder.name)
def archives(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with archives; the working folder is one with the data they were trained on."""
    monkeypatch.chdir(tmp_path)
    folder: Path = request.param
    _unpack(folder / "data.tar.gz")
    return folder


def _unpack(archive: Path) -> None:
    with tarfile.open(archive) as file:
        file.extractall(filter="data")


def unpacked(archives: Path, name: str) -> Path:
    _unpack(archives / f"{name}.tar.gz")
    return Path("runs") / name


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Key -> dtype, shape and bytes, read by the format's description alone; without fillers."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])
    entries.pop("__metadata__", None)
    return {
        key: (one["dtype"], tuple(one["shape"]), content[start:][slice(*one["data_offsets"])])
        for key, one in entries.items()
        if not key.startswith("unused/")
    }


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("lock", "events.jsonl")
    }


@pytest.mark.parametrize("name", FINISHED)
def test_same_command_finds_nothing_to_do(
    archives: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = unpacked(archives, name)
    before = state_of(folder)
    assert main(["fit", *arguments(name)]) == 0
    assert state_of(folder) == before
    assert "finished" in capsys.readouterr().out
    assert main(["plan", *arguments(name)]) == 0


@pytest.mark.parametrize("name", FINISHED)
def test_changed_command_is_refused(archives: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = unpacked(archives, name)
    before = state_of(folder)
    assert main(["fit", *arguments(name), "--model.weight_decay", "0.5"]) == 2
    assert "model.weight_decay" in capsys.readouterr().err
    assert state_of(folder) == before


@pytest.mark.parametrize("name", FINISHED)
def test_every_row_is_right_and_every_value_read_as_it_was_written(
    archives: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = unpacked(archives, name)
    assert main(["verify", str(folder)]) == 0, capsys.readouterr().out
    assert main(["info", str(folder)]) == 0
    files = sorted(folder.rglob("*.safetensors"))
    raw = {path: tensors_of(path) for path in files}
    with open_recording(folder) as recording:
        assert len(recording) == EXPERIMENTS[name].num_runs
        for run in recording:
            for tensor in run.names:
                keys = (tensor, f"run_{run.index}_{tensor}")
                got = np.asarray(run.tensor(tensor)[:])
                stored = [
                    values[key]
                    for path, values in raw.items()
                    for key in keys
                    if key in values and (key == keys[1] or path.parent.name == f"run_{run.index}")
                ]
                assert stored
                assert all((got.shape, got.tobytes()) == one[1:] for one in stored), tensor


@pytest.mark.parametrize("name", CUT)
def test_unfinished_experiment_goes_on(archives: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = unpacked(archives, name)
    partial = tensors_of(folder / f"run_{EXPERIMENTS[name].cut_in_run}" / "recording.partial")
    steps = np.frombuffer(partial["recorded_steps"][2], np.int64)
    num_rows = 1 + int(np.max(np.nonzero(steps)))
    assert main(["status", str(folder)]) in (0, 1, 3), capsys.readouterr().out
    assert main(["verify", str(folder)]) == 1
    assert "damaged" not in capsys.readouterr().out
    assert main(["fit", *arguments(name), *MIXED]) == 0, capsys.readouterr().err
    assert main(["verify", str(folder)]) == 0
    with open_recording(folder) as recording:
        run = recording.run(1)
        assert len(recording) == 3
        assert [one.num_rows for one in recording] == [31, 31, 31]
        for key, (_, shape, data) in partial.items():
            got = np.asarray(run.tensor(key)[:num_rows])
            assert got.tobytes() == data[: len(data) // shape[0] * num_rows], key


def test_shards_are_gathered(archives: Path) -> None:
    folder = unpacked(archives, "shards")
    shards = [tensors_of(folder / f"run_{index}" / "recording.safetensors") for index in range(2)]
    assert main(["gather", str(folder), "--mode", "single"]) == 0
    gathered = tensors_of(folder / "shards.safetensors")
    for index, shard in enumerate(shards):
        for key, value in shard.items():
            assert gathered[f"run_{index}_{key}"] == value
    assert main(["verify", str(folder)]) == 0


def test_two_of_them_are_compared_and_reported(archives: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gathered, shards = unpacked(archives, "gathered"), unpacked(archives, "shards")
    assert main(["compare", str(gathered), str(shards)]) == 0, capsys.readouterr().out
    assert main(["report", str(unpacked(archives, "swept"))]) == 0
