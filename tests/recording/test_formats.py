"""A format is its own folder and a row of the table: all else records, reads, checks and resumes with it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import flannel_pl
from flannel_pl.errors import RunError
from flannel_pl.experiment import RunPaths
from flannel_pl.recording.checking.verify import num_good_rows, verify
from flannel_pl.recording.formats import files
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.info import describe_recording
from flannel_pl.recording.reader import open_recording
from tests.recording.damage import bad_rows
from tests.recording.folder_format import FOLDER, HEADER
from tests.recording.recording_samples import bits, journal_of, make_schema, make_writer, write_rows
from tests.training.test_from_python import STEPS, half, recorder_in
from tests.training.test_recorder import fit

STATIC = {"recorded_tokens": np.arange(0, 60, 2)}


@pytest.fixture
def in_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets recordings be written as folders; what a format needs besides its own module is this row."""
    monkeypatch.setattr(files, "FORMATS", (FOLDER, *files.FORMATS))


def record(folder: Path, *, stopped_at: int | None = None) -> Path:
    """Returns a finished recording, which was interrupted before a row, if one is given."""
    first_row = 0
    if stopped_at is not None:
        writer = make_writer(folder, static=STATIC)
        write_rows(writer, range(stopped_at))
        writer.abort("stopped", state="stopped")
        first_row = num_good_rows(RunPaths(folder).partial)
        assert first_row == stopped_at
    writer = make_writer(folder, static=STATIC, first_row=first_row)
    write_rows(writer, range(first_row, 7))
    writer.finish()
    return RunPaths(folder).recording


def all_bits(path: Path) -> dict[str, bytes]:
    with open_recording(path) as recording:
        run = recording.run(0)
        return {name: bits(run.tensor(name)[:]) for name in run.names}


@pytest.mark.parametrize("stopped_at", [None, 0, 3, 7])
def test_the_same_bits_in_another_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int | None
) -> None:
    usual = record(tmp_path / "usual")
    monkeypatch.setattr(files, "FORMATS", (FOLDER, *files.FORMATS))
    other = record(tmp_path / "other", stopped_at=stopped_at)
    assert (other / HEADER).is_file()
    assert usual.is_file()
    assert all_bits(other) == all_bits(other.parent) == all_bits(usual)
    assert journal_of(other.parent).state == "done"
    with open_recording(other, framework="pt") as recording:
        assert recording.run(0).embeddings[2:4, [1, 3]].dtype == torch.bfloat16
    assert bad_rows(other) == []
    assert verify(other).ok
    assert verify(other.parent).ok
    assert "7 rows (steps 0 to 6), 30 tokens of the vocabulary" in describe_recording(other)


@pytest.mark.usefixtures("in_folders")
def test_what_was_begun_in_one_format_goes_on_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setattr(files, "FORMATS", files.FORMATS[1:])
        writer = make_writer(tmp_path, static=STATIC)
        rows = write_rows(writer, range(3))
        writer.abort("stopped", state="stopped")
    writer = make_writer(tmp_path, static=STATIC, first_row=3)
    rows += write_rows(writer, range(3, 7))
    writer.finish()
    assert RunPaths(tmp_path).recording.is_file()
    assert all_bits(tmp_path)["embeddings"] == b"".join(row["embeddings"] for row in rows)


@pytest.mark.usefixtures("in_folders")
def test_damage_is_found(tmp_path: Path) -> None:
    recording = record(tmp_path)
    column = recording / "grads.npy"
    content = bytearray(column.read_bytes())
    content[-1] ^= 1
    column.write_bytes(content)
    assert verify(recording).damage == ("grads is not as its checksum says in row 6 (step 6)",)
    (recording / HEADER).write_text("{")
    assert verify(tmp_path).parts[0].state == "damaged"


@pytest.mark.usefixtures("in_folders")
def test_an_early_end(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, schema=make_schema(max_steps=9))
    rows = write_rows(writer, range(4))
    writer.finish(EarlyEnd(step=3, planned_steps=9, reason="enough"))
    assert all_bits(tmp_path)["logits"] == b"".join(row["logits"] for row in rows)
    assert verify(tmp_path).ok
    assert "ended early at step 3 of 9 (enough)" in describe_recording(tmp_path)


@pytest.mark.usefixtures("in_folders")
def test_an_attempt_that_leaves_nothing(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)
    write_rows(writer, range(2))
    writer.abort("it was a trial", keep_file=False)
    assert not RunPaths(tmp_path).partial.exists()


@pytest.mark.usefixtures("in_folders")
def test_other_columns_are_refused(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)
    write_rows(writer, range(2))
    writer.abort("stopped", state="stopped")
    with pytest.raises(RunError, match="begun with other columns"):
        make_writer(tmp_path, schema=make_schema(tensors=["losses"]), first_row=2)


def test_a_training_that_was_interrupted_and_went_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, formats in (("usual", files.FORMATS), ("other", (FOLDER, *files.FORMATS))):
        monkeypatch.setattr(files, "FORMATS", formats)
        recorder = recorder_in(tmp_path / folder)
        fit(recorder, steps=STEPS, ckpt_path=half(recorder))
    assert all_bits(tmp_path / "other") == all_bits(tmp_path / "usual")
    with flannel_pl.open_recording(tmp_path / "other") as recording:
        assert recording.run(0).num_rows == STEPS + 1
    assert json.loads((recorder.paths.recording / HEADER).read_text())[1]["num_rows"] == STEPS + 1
