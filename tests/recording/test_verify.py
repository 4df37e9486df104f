import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths, RunPaths
from flannel_pl.recording.checking.verify import num_good_rows, verify, verify_verb
from flannel_pl.recording.formats.metadata import dump_metadata
from flannel_pl.recording.formats.safetensors.layout import plan_layout, read_layout
from flannel_pl.recording.formats.specs import TensorSpec
from flannel_pl.recording.gathering.gather import gather
from flannel_pl.recording.integrity import cells
from tests.recording.damage import bad_rows, flipped, write_byte
from tests.recording.recording_samples import (
    MAX_STEPS,
    make_experiment,
    make_schema,
    make_writer,
    write_rows,
)

DRAW = np.random.default_rng(0)
SUBSET = {"recorded_tokens": np.arange(30)}


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    writer = make_writer(tmp_path, static=SUBSET)
    write_rows(writer, range(7))
    writer.finish()
    return RunPaths(tmp_path).recording


def partial_of(folder: Path, *, rows: int, max_steps: int = MAX_STEPS, every_n_steps: int = 1) -> Path:
    schema = make_schema(max_steps=max_steps, every_n_steps=every_n_steps)
    writer = make_writer(folder, schema=schema, static=SUBSET)
    for row in range(rows):
        buffer = writer.acquire()
        buffer.tensors["recorded_steps"].fill_(row * every_n_steps)
        buffer.tensors["grads"].fill_(row)
        writer.submit(buffer, row)
    writer.abort("killed")
    return RunPaths(folder).partial


def found(path: Path) -> str:
    report = verify(path)
    assert report.ok == (not report.damage)
    return "; ".join(report.damage)


def test_what_is_right_is_right(shard: Path) -> None:
    report = verify(shard)
    assert report.ok
    assert [(part.run, part.num_rows, part.state) for part in report.parts] == [(0, 7, "ok")]
    assert bad_rows(shard) == []


@pytest.mark.slow
def test_every_bit_of_every_byte_of_a_header_counts(shard: Path) -> None:
    header = read_layout(shard).header
    for position in range(len(header)):
        with flipped(shard, position, bit=int(DRAW.integers(8))):
            try:
                damage = found(shard)
            except RunError as error:  # the key of our metadata is not there any more
                damage = str(error)
            assert damage, f"byte {position} of the header, {header[position : position + 1]!r}"


def test_every_tensor_counts(shard: Path) -> None:
    layout = read_layout(shard)
    for key, spec in layout.tensors.items():
        start, end = layout.offsets[key], layout.offsets[key] + spec.num_bytes
        positions = {start, end - 1, *DRAW.integers(start, end, size=8).tolist()}
        for position in positions:
            with flipped(shard, position, bit=int(DRAW.integers(8))):
                row = (position - start) // max(spec.num_bytes // 7, 1)
                if key == "recorded_tokens":
                    assert found(shard) == "recorded_tokens is not as its checksum says"
                elif key == "checksums":
                    column = layout.flannel["checksum_columns"][(position - start) // 8 % 10]
                    assert found(shard) == f"{column} is not as its checksum says in row {row} (step {row})"
                else:
                    assert found(shard) == f"{key} is not as its checksum says in row {row} (step {row})"
                    assert bad_rows(shard) == [(row, key)]


def test_every_byte_of_a_small_gathered_file_counts(tmp_path: Path) -> None:
    paths = make_experiment(
        tmp_path / "x", num_runs=1, tensors=["losses"], num_tokens=1, hidden_dim=1, max_steps=2
    )
    gather(paths.folder)
    assert verify(paths.gathered).ok
    layout = read_layout(paths.gathered)
    for position in range(len(layout.header), layout.total_bytes):
        with flipped(paths.gathered, position, bit=int(DRAW.integers(8))):
            assert found(paths.gathered), f"byte {position}"
    for position in DRAW.integers(len(layout.header), size=300).tolist():
        with flipped(paths.gathered, position, bit=int(DRAW.integers(8))):
            try:
                damage = found(paths.gathered)
            except RunError as error:
                damage = str(error)
            assert damage, f"byte {position} of the header"


def test_a_file_cut_short_anywhere(shard: Path) -> None:
    size = shard.stat().st_size
    lengths = [0, 7, 8, 100, 4095, 4096, 4097, size - 1, *DRAW.integers(size, size=40).tolist()]
    content = shard.read_bytes()
    for length in lengths:
        shard.write_bytes(content[:length])
        assert "is not a complete safetensors file" in found(shard)
        assert num_good_rows(shard) == 0


def test_rows_swapped_with_their_checksums_are_found(shard: Path) -> None:
    layout = read_layout(shard)
    content = bytearray(shard.read_bytes())
    for key, spec in layout.tensors.items():
        if key != "recorded_tokens":
            size = spec.num_bytes // 7
            a, b = layout.offsets[key] + 2 * size, layout.offsets[key] + 3 * size
            content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]
    shard.write_bytes(content)
    assert found(shard) == "recorded_steps is not as its checksum says in row 2 (step 2), row 3 (step 3)"


def test_many_damaged_rows_are_counted(tmp_path: Path) -> None:
    schema = make_schema(tensors=["losses"], max_steps=36, every_n_steps=3)
    writer = make_writer(tmp_path, schema=schema)
    for row in range(13):
        buffer = writer.acquire()
        buffer.tensors["recorded_steps"].fill_(3 * row)
        writer.submit(buffer, row)
    writer.finish()
    path = RunPaths(tmp_path).recording
    layout = read_layout(path)
    for row in range(2, 13):
        write_byte(path, layout.offsets["losses"] + 2 * row, 1)
    assert found(path) == (
        "losses is not as its checksum says in row 2 (step 6), row 3 (step 9), row 4 (step 12), "
        "row 5 (step 15), row 6 (step 18) and 6 more rows"
    )
    assert bad_rows(path, first=3, last=5) == [(3, "losses"), (4, "losses")]
    assert bad_rows(path, last=2) == []


@pytest.mark.parametrize("piece_bytes", [100, 500, 2**23])
def test_pieces_of_any_size_find_the_same(
    shard: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(cells, "PIECE_BYTES", piece_bytes)
    assert verify(shard).ok
    layout = read_layout(shard)
    for key, row in (("grads", 6), ("losses", 3), ("variance", 0)):
        row_bytes = layout.tensors[key].num_bytes // 7
        with flipped(shard, layout.offsets[key] + row * row_bytes + row_bytes - 1):
            assert bad_rows(shard) == [(row, key)]


def test_progress_reaches_the_end(shard: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify(shard, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    layout = read_layout(shard)
    # Checksums and static tensors are read along with the rest.
    assert seen[-1][0] > 0.8 * layout.total_bytes
    assert seen[-1][0] <= seen[-1][1] == layout.total_bytes


def test_an_unfinished_run(tmp_path: Path) -> None:
    partial = partial_of(tmp_path, rows=4, max_steps=18, every_n_steps=3)
    for path in (partial, tmp_path):
        report = verify(path)
        assert (report.ok, report.damage) == (False, ())
        assert [(part.state, part.num_rows) for part in report.parts] == [("unfinished", 4)]
    assert num_good_rows(partial) == 4
    assert bad_rows(partial)[0][0] == 4


def test_rows_to_go_on_from_end_before_the_first_damaged_one(tmp_path: Path) -> None:
    partial = partial_of(tmp_path, rows=5)
    layout = read_layout(partial)
    for key in ("recorded_steps", "grads", "losses_f32", "checksums"):
        for row in range(5):
            row_bytes = layout.tensors[key].num_bytes // 7
            with flipped(partial, layout.offsets[key] + row * row_bytes + row_bytes // 2, bit=4):
                assert num_good_rows(partial) == row
    with flipped(partial, layout.offsets["grads"] + 6 * 240):  # nothing was written there yet
        assert num_good_rows(partial) == 5
    with flipped(partial, layout.offsets["recorded_tokens"]):
        assert num_good_rows(partial) == 0
    for position in (3, 100, len(layout.header) - 1):
        with flipped(partial, position):
            assert num_good_rows(partial) == 0
    assert num_good_rows(partial) == 5
    assert num_good_rows(tmp_path / "nowhere") == 0
    os.truncate(partial, layout.total_bytes - 1)
    assert num_good_rows(partial) == 0


def test_a_file_without_checksums_cannot_be_verified(tmp_path: Path) -> None:
    path = tmp_path / "1.20c_flannel_3.safetensors"
    safetensors.numpy.save_file({"run_0_losses": np.zeros(3)}, path)
    with pytest.raises(RunError, match=r"flannel_3.safetensors carries no checksums, so there is nothing"):
        verify(path)
    assert num_good_rows(path) == 0


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no .*typo; expected a recording"):
        verify(tmp_path / "typo")
    with pytest.raises(UserError, match=r"holds no recording to verify. flannel-pl fit makes one"):
        verify(tmp_path)


def foreign_shard(folder: Path, **changes: Any) -> Path:
    """A file with a right header that says something else of its tensors than what they are."""
    metadata = {
        **{"schema": 1, "run": 0, "seed": 42, "swept": {}, "num_rows": 7, "every_n_steps": 1},
        **{"checksum_columns": list(make_schema().names), "static_checksums": {}, **changes},
    }
    layout = plan_layout(
        make_schema().specs(), metadata=dump_metadata({k: v for k, v in metadata.items() if v is not None})
    )
    path = folder / "x.safetensors"
    path.write_bytes(layout.header.ljust(layout.total_bytes, b"\0"))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_rows": 8}, "embeddings is BF16 of shape (7, 30, 4), expected BF16 of shape (8, 30, 4)"),
        ({"schema": 3}, "its schema is 3, this flannel-pl knows 1 and 2"),
        ({"every_n_steps": None}, "the metadata do not say every_n_steps"),
        (
            {"checksum_columns": ["recorded_steps", "losses"]},
            "checksums is U64 of shape (7, 10), expected U64 of shape (7, 5)",
        ),
        (
            {"static_checksums": {"recorded_tokens": "0" * 16}},
            "recorded_tokens is not there, expected I64 of",
        ),
        ({"checksum_columns": []}, "the columns are [], expected ['recorded_steps', 'losses_f32'"),
        ({"runs": []}, "embeddings is there and belongs to no run"),
        (
            {
                "runs": [
                    {"index": 3, "num_rows": 7, "every_n_steps": 1, "checksum_columns": ["recorded_steps"]}
                ]
            },
            "the metadata do not say static_checksums",
        ),
    ],
)
def test_metadata_that_imply_other_tensors(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = foreign_shard(tmp_path, **changes)
    assert words in found(path)
    assert num_good_rows(path) == 0


def test_a_missing_run_of_a_gathered_file_is_found(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path / "x", num_runs=2)
    gather(paths.folder)
    old = read_layout(paths.gathered)
    specs = {key: spec for key, spec in old.tensors.items() if not key.startswith("run_1_")}
    layout = plan_layout(specs, metadata=dump_metadata(old.flannel))
    content = paths.gathered.read_bytes()
    data = b"".join(
        content[old.offsets[key] : old.offsets[key] + spec.num_bytes] for key, spec in layout.tensors.items()
    )
    paths.gathered.write_bytes(layout.header + data)
    assert "run_1_embeddings is not there, expected BF16" in found(paths.gathered)


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentPaths:
    paths = make_experiment(tmp_path / "with space" / "flannel3")
    gather(paths.folder)
    return paths


def test_a_whole_folder(experiment: ExperimentPaths) -> None:
    report = verify(experiment.folder)
    assert report.ok
    assert [(part.path.name, part.run) for part in report.parts] == [
        *(("recording.safetensors", run) for run in range(3)),
        *(("flannel3.safetensors", run) for run in (None, 0, 1, 2)),
    ]
    assert sum(part.num_rows for part in report.parts) == 6 * 7


def test_damage_in_a_folder_is_placed(
    experiment: ExperimentPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = experiment.run(1).recording
    write_byte(shard, read_layout(shard).offsets["grads"] + 3 * 240, 0xAA)
    start = read_layout(experiment.gathered).offsets["run_2_momentum"]
    write_byte(experiment.gathered, start + 5 * 240, 0xAA)
    assert verify_verb(experiment.folder) == 1
    lines = capsys.readouterr().out.splitlines()
    bad = [number for number, line in enumerate(lines) if line.startswith("damaged")]
    assert [lines[number].split(": 7 rows")[0] for number in bad] == [
        f"damaged    {shard}, run 1",
        f"damaged    {experiment.gathered}, run 2",
    ]
    assert lines[bad[0] + 1].strip() == "grads is not as its checksum says in row 3 (step 3)"
    assert lines[bad[0] + 2].strip() == (
        "delete it and run flannel-pl fit again: it records this run again, unless that is gathered"
    )
    assert lines[
        bad[1] + 1
    ].strip() == "run_2_momentum is not as its checksum says in row 5 (step 5)".replace("run_2_", "")
    assert lines[bad[1] + 2].strip() == (
        f"gather again, if the runs' own recordings are right: flannel-pl gather '{experiment.folder}'"
    )
    assert lines[-1].startswith("2 damaged, 5 ok (")


def test_damage_of_a_run_whose_shard_is_gone(
    experiment: ExperimentPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment.run(2).recording.unlink()
    write_byte(experiment.gathered, read_layout(experiment.gathered).offsets["run_2_momentum"], 0xAA)
    assert verify_verb(experiment.gathered) == 1
    assert "run 2 has no recording of its own any more: bring the file back from a copy; if there" in (
        capsys.readouterr().out
    )


def test_what_the_verb_says_when_all_is_right(
    experiment: ExperimentPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify_verb(experiment.run(0).recording) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"ok         {experiment.run(0).recording}, run 0: 7 rows, ")
    assert lines[0].endswith(" GB/s")
    assert lines[1].startswith("every row is there, and every bit as it was written (")


def test_an_unfinished_run_in_a_folder(
    experiment: ExperimentPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment.gathered.unlink()
    shutil.rmtree(experiment.run(1).folder)
    experiment.run(2).recording.unlink()
    partial_of(experiment.run(2).folder, rows=2)
    assert verify_verb(experiment.folder) == 1
    out = capsys.readouterr().out
    assert f"unfinished {experiment.run(1).recording}, run 1: 0 rows" in out
    assert f"unfinished {experiment.run(2).partial}, run 0: 2 rows" in out
    assert "2 unfinished, 1 ok" in out


def change_record(paths: ExperimentPaths, **changes: Any) -> None:
    record = json.loads(paths.record.read_text())
    paths.record.write_text(json.dumps(record | changes))


def test_a_record_that_does_not_agree(experiment: ExperimentPaths) -> None:
    record = json.loads(experiment.record.read_text())
    change_record(experiment, provenance={"torch": "2.14"})
    assert found(experiment.folder).startswith("its provenance is not the one of experiment.json")
    runs = [run | {"seed": run["seed"] + 1} for run in record["runs"]]
    change_record(experiment, provenance=record["provenance"], runs=runs)
    damage = found(experiment.folder)
    assert "it does not belong to this experiment: its seed is 42, expected 43" in damage
    assert "its runs are not those of experiment.json" in damage
    experiment.record.write_text('{"name": "flannel3"')
    with pytest.raises(RunError, match=r"Cannot read .*experiment.json"):
        verify(experiment.folder)


def test_masks_that_do_not_agree(experiment: ExperimentPaths) -> None:
    masks = safetensors.numpy.load_file(experiment.masks)
    masks["live_mask"][3] ^= True
    safetensors.numpy.save_file(masks, experiment.masks)
    assert found(experiment.folder) == "live_mask do not follow from token_occurrence_counts"
    record = json.loads(experiment.record.read_text())
    record["provenance"]["data"]["masks"] = "0" * 64
    change_record(experiment, provenance=record["provenance"])
    assert "token_occurrence_counts are not those the experiment was trained with" in found(experiment.folder)
    experiment.masks.write_bytes(b"")
    assert "live_dead_tokens.safetensors is not a complete safetensors file" in found(experiment.folder)


def test_an_index_and_what_it_names(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path / "flannel3", gather="index", num_runs=2)
    gather(paths.folder)
    for path in (paths.index, paths.folder):
        report = verify(path)
        assert report.ok
        assert {(part.path.name, part.run) for part in report.parts} == {
            ("flannel3.extras.safetensors", None),
            ("recording.safetensors", 0),
            ("recording.safetensors", 1),
        }
    for position in DRAW.integers(paths.index.stat().st_size, size=60).tolist():
        with flipped(paths.index, position, bit=int(DRAW.integers(8))):
            for path in (paths.index, paths.folder):
                assert "it is not as it was written; gather again with --mode index" in found(path)
    extras = read_layout(paths.index_extras)
    for position in range(len(extras.header), extras.total_bytes, 3):
        with flipped(paths.index_extras, position):
            assert "is not as its checksum says" in found(paths.index_extras)
    with flipped(paths.run(1).recording, read_layout(paths.run(1).recording).total_bytes - 1):
        assert "variance is not as its checksum says in row 6" in found(paths.index)
    paths.run(1).recording.unlink()
    assert "run_1/recording.safetensors" in found(paths.index)


def test_verifying_imports_no_torch(shard: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from flannel_pl.recording.checking.verify import verify_verb\n"
        "assert verify_verb(Path(sys.argv[1])) == 0\n"
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(shard)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def cat_seconds(path: Path) -> float:
    start_s = time.monotonic()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(2**17)
        while file.readinto(buffer):
            pass
    return time.monotonic() - start_s


@pytest.mark.slow
def test_checking_is_about_as_fast_as_reading(tmp_path: Path) -> None:
    schema = make_schema(num_tokens=10_000, hidden_dim=64, max_steps=99)
    writer = make_writer(tmp_path, schema=schema)
    for row in range(100):
        buffer = writer.acquire()
        buffer.tensors["recorded_steps"].fill_(row)
        writer.submit(buffer, row)
    writer.finish()
    path = RunPaths(tmp_path).recording
    reading_s = min(cat_seconds(path) for _ in range(5))
    checking_s = []
    for _ in range(5):
        start_s = time.monotonic()
        assert bad_rows(path) == []
        checking_s.append(time.monotonic() - start_s)
    # On a quiet machine 0.8 to 1.1 of the speed; this notices a syscall per row or a copy too many.
    assert min(checking_s) < 3 * reading_s
    assert TensorSpec("BF16", (100, 10_000, 64)) == read_layout(path).tensors["grads"]
