import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from flannel_pl.errors import RunError, UserError
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.formats.safetensors import layout
from flannel_pl.recording.formats.safetensors.layout import FILLER, read_layout
from flannel_pl.recording.gathering import notes as gather_notes
from flannel_pl.recording.gathering.gather import gather, gather_verb
from flannel_pl.recording.gathering.gathered import gathered_runs
from flannel_pl.recording.gathering.gatherer import Gatherer
from flannel_pl.recording.reader import open_recording
from flannel_pl.recording.writing.lock import Lock
from tests.recording.gathering_samples import (
    assert_gathered,
    bring_back,
    experiment,
    hide,
    make_run,
    tensors_of,
)
from tests.recording.recording_samples import (
    make_experiment,
    make_schema,
    make_writer,
    run_metadata,
    write_rows,
)
from tests.traces import traces


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("keep_shards", [True, False])
def test_runs_are_added_as_they_finish(tmp_path: Path, order: tuple[int, ...], keep_shards: bool) -> None:
    paths = experiment(tmp_path / "flannel3", keep_shards=keep_shards)
    expected = tensors_of(paths)
    hide(paths, 0, 1, 2)
    gatherer = Gatherer(paths.folder)
    for number, run in enumerate(order):
        bring_back(paths, run)
        assert gatherer.waiting == [run]
        gatherer.add(run)
        assert gatherer.waiting == []
        assert not paths.gathered.exists()
        assert paths.run(run).recording.exists() == keep_shards
        assert gatherer.gathered == gathered_runs(paths.folder) == set(order[: number + 1])
        if number < 2:
            with pytest.raises(RunError, match=rf"no finished recording of run .*\({2 - number} of 3 runs\)"):
                gatherer.finish()
    assert gatherer.finish() == paths.gathered
    assert_gathered(paths, expected, shards=3 if keep_shards else 0)
    assert gatherer.gathered == gathered_runs(paths.folder) == {0, 1, 2}
    before = traces(paths.gathered)
    assert gatherer.finish() == Gatherer(paths.folder).finish() == paths.gathered
    assert traces(paths.gathered) == before
    # The same metadata as from the shards of a finished experiment, but for the room in the header.
    assert read_layout(paths.gathered).flannel["runs"][1]["seed"] == 43


def test_gathering_all_at_once_gives_the_same_content(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "flannel3", keep_shards=True)
    gather(paths.folder)
    at_once = read_layout(paths.gathered)
    expected = tensors_of(paths)
    paths.gathered.unlink()
    hide(paths, 1, 2)
    gatherer = Gatherer(paths.folder)
    gatherer.add(0)
    bring_back(paths, 1)
    bring_back(paths, 2)
    gatherer.finish()
    one_by_one = read_layout(paths.gathered)
    assert_gathered(paths, expected, shards=3)
    assert len(one_by_one.header) > len(at_once.header)
    for one in (at_once, one_by_one):
        del one.flannel["header_checksum"]
    assert one_by_one.flannel == at_once.flannel
    assert one_by_one.tensors == at_once.tensors


def test_a_new_gatherer_goes_on(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "flannel3")
    expected = tensors_of(paths)
    hide(paths, 1, 2)
    Gatherer(paths.folder).add(0)
    assert gathered_runs(paths.folder) == {0}
    with pytest.raises(RunError, match=r"no finished recording of run 1, 2 \(2 of 3 runs\)"):
        gather(paths.folder)
    assert gathered_runs(paths.folder) == {0}  # a failed gather drops nothing that is nowhere else
    bring_back(paths, 2)
    gatherer = Gatherer(paths.folder)
    gatherer.add(2)
    gatherer.add(0)
    bring_back(paths, 1)
    assert gather(paths.folder) == paths.gathered
    assert_gathered(paths, expected, shards=0)


def test_a_finished_experiment_without_shards_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = experiment(tmp_path / "flannel3")
    gather(paths.folder)
    before = traces(paths.gathered)
    gather_verb(paths.folder)
    assert capsys.readouterr().out.startswith(f"gathered already: {paths.gathered} (")
    assert traces(paths.gathered) == before
    with pytest.raises(RunError, match=r"no finished recording of run 0, 1, 2 .* an index refers to"):
        gather(paths.folder, mode="index")


def test_the_disk_never_holds_more_than_one_run_twice(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "flannel3", num_runs=1)
    record = json.loads(paths.record.read_text())
    record["runs"] = [{"index": i, "seed": 42 + i, "swept": {}} for i in range(5)]
    paths.record.write_text(json.dumps(record))
    schema = make_schema(num_tokens=500, hidden_dim=64)
    shutil.rmtree(paths.run(0).folder)
    for run in record["runs"]:
        writer = make_writer(
            paths.run(run["index"]).folder, schema=schema, metadata=run_metadata(record, run)
        )
        write_rows(writer, range(7), seed=run["seed"])
        writer.finish()
    expected = tensors_of(paths)
    shard_bytes = paths.run(0).recording.stat().st_size
    peak = 0

    def look(done: int, total: int) -> None:
        nonlocal peak
        files = [paths.growing, *paths.folder.glob("run_*/recording.safetensors")]
        peak = max(peak, sum(file.stat().st_blocks * 512 for file in files if file.exists()))

    gather(paths.folder, progress=look)
    assert_gathered(paths, expected, shards=0)
    assert 5 * shard_bytes < peak < 6.2 * shard_bytes


@pytest.mark.parametrize("odd_run", [0, 1, 2])
@pytest.mark.parametrize("keep_shards", [True, False])
def test_runs_of_different_size(tmp_path: Path, odd_run: int, keep_shards: bool) -> None:
    paths = experiment(tmp_path / "flannel3", keep_shards=keep_shards)
    make_run(paths, odd_run, num_tokens=50, hidden_dim=8)
    expected = tensors_of(paths)
    hide(paths, 0, 1, 2)
    gatherer = Gatherer(paths.folder)
    for run in range(3):
        bring_back(paths, run)
        gatherer.add(run)
    assert len(gatherer.gathered) < 3
    gatherer.finish()
    assert_gathered(paths, expected, shards=3 if keep_shards else 0)


def test_a_gathered_experiment_of_different_sizes_needs_no_second_copy(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "flannel3")
    make_run(paths, 1, num_tokens=50)
    expected = tensors_of(paths)
    seen: list[tuple[int, int]] = []
    gather(paths.folder, progress=lambda done, total: seen.append((done, total)))
    assert_gathered(paths, expected, shards=0)
    assert seen == sorted(seen)
    assert seen[-1] == (paths.gathered.stat().st_size,) * 2


def test_a_header_that_outgrows_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = experiment(tmp_path / "flannel3")
    expected = tensors_of(paths)
    hide(paths, 1, 2)
    monkeypatch.setattr(gather_notes, "SPARE_BYTES_PER_RUN", -4096)
    gatherer = Gatherer(paths.folder)
    with pytest.raises(RunError, match="no finished recording"):
        gatherer.finish()
    gatherer.add(0)
    bring_back(paths, 1)
    bring_back(paths, 2)
    gatherer.finish()
    assert_gathered(paths, expected, shards=0)


def test_more_runs_than_a_file_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = experiment(tmp_path / "flannel3")
    monkeypatch.setattr(layout, "MAX_TENSORS", 40)
    with pytest.raises(UserError, match=r"3 runs are too many for one file.* --mode index"):
        gather(paths.folder)
    assert not list(paths.folder.glob("flannel3*"))


def test_a_full_disk_is_refused_before_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = experiment(tmp_path / "flannel3")
    size = paths.run(0).recording.stat().st_size
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size - 1))
    gatherer = Gatherer(paths.folder)
    with pytest.raises(UserError, match=r"need .* KiB, have .* KiB free"):
        gatherer.add(0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size))
    gather(paths.folder)  # one run's size is enough for three
    assert verify(paths.gathered).ok


def test_two_gatherers_in_one_folder_publish_nothing_wrong(tmp_path: Path) -> None:
    # As when a lock was lost: neither knows of the other.
    paths = experiment(tmp_path / "exp", num_runs=2)
    expected = tensors_of(paths)
    a, b = Gatherer(paths.folder), Gatherer(paths.folder)
    b.add(1)
    with pytest.raises(RunError, match=r"exp\.safetensors\.partial was made by another process"):
        a.add(0)
    a.abandon()
    b.add(0)
    b.finish()
    assert_gathered(paths, expected, shards=0)


def test_a_growing_file_that_was_replaced_is_not_published(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "exp", keep_shards=True, num_runs=2)
    expected = tensors_of(paths)
    b = Gatherer(paths.folder)
    b.add(1)
    paths.growing.unlink()
    paths.growing_notes.unlink()
    a = Gatherer(paths.folder)
    a.add(0)
    for act in (b.finish, lambda: b.add(0), lambda: b.add(1)):
        with pytest.raises(RunError, match=r"was replaced or removed by another process"):
            act()
    assert not paths.gathered.exists()
    b.abandon()  # what is there is a's
    assert paths.growing.exists()
    a.finish()
    assert_gathered(paths, expected, shards=2)


def test_two_gatherers_of_one_growing_file_forget_no_run(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "exp")
    expected = tensors_of(paths)
    a = Gatherer(paths.folder)
    a.add(0)
    b = Gatherer(paths.folder)
    b.add(1)
    with pytest.raises(RunError, match=r"gathered\.json was changed by another process"):
        a.add(2)
    assert paths.run(2).recording.exists()
    b.finish()
    assert_gathered(paths, expected, shards=0)


def test_gathering_from_python_takes_the_lock_of_the_verb(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "exp")
    lock = Lock(paths.lock, what="the experiment")
    lock.acquire()
    try:
        for mode in ("single", "index"):
            with pytest.raises(UserError, match=r"the experiment .*exp is in use by process"):
                gather(paths.folder, mode=mode)
        with pytest.raises(UserError, match="is in use by process"):
            gather_verb(paths.folder)
    finally:
        lock.release()
    assert not paths.growing.exists()
    assert gather(paths.folder) == paths.gathered
    assert not paths.lock.exists()


@pytest.mark.parametrize("name", ["token_occurrence_counts", "live_mask", "dead_indices"])
@pytest.mark.parametrize("mode", ["single", "index"])
def test_one_flipped_bit_in_the_masks_is_not_gathered(tmp_path: Path, name: str, mode: Any) -> None:
    paths = make_experiment(tmp_path / "exp", num_runs=1, gather=mode)
    masks = safetensors.numpy.load_file(paths.masks)
    counts = masks["token_occurrence_counts"].astype("<i8").tobytes()
    record = json.loads(paths.record.read_text())
    record["provenance"]["data"]["masks"] = hashlib.sha256(counts).hexdigest()
    paths.record.write_text(json.dumps(record))
    make_run(paths, 0, key_prefix="run_0_" if mode == "index" else "")
    start = read_layout(paths.masks).offsets[name]
    content = bytearray(paths.masks.read_bytes())
    content[start] ^= 1
    paths.masks.write_bytes(content)
    with pytest.raises(RunError, match=r"live_dead_tokens\.safetensors is damaged: "):
        gather(paths.folder)
    assert not paths.gathered.exists()
    assert not paths.index.exists()
    for opened in (paths.folder, paths.run(0).folder, paths.run(0).recording):
        with open_recording(opened) as recording, pytest.raises(RunError, match="are damaged, or of another"):
            _ = recording.masks


def test_a_growing_file_of_another_experiment_is_left_alone(tmp_path: Path) -> None:
    paths = experiment(tmp_path / "exp")
    Gatherer(paths.folder).add(0)
    record = json.loads(paths.record.read_text())
    record["runs"][0]["seed"] = 7
    paths.record.write_text(json.dumps(record))
    before = traces(paths.folder)
    with pytest.raises(RunError, match="has a run 0 that is not this experiment's"):
        Gatherer(paths.folder)
    assert traces(paths.folder) == before


ENDS = [(3, None, None), (None, 2, None), (None, None, 0), (5, 2, 3), (3, 3, 3)]


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("keep_shards", [True, False])
@pytest.mark.parametrize("room", ["enough", "too little", "for no fillers"])
def test_runs_of_different_lengths(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: tuple[int | None, ...],
    keep_shards: bool,
    room: str,
) -> None:
    paths = experiment(tmp_path / "flannel3", keep_shards=keep_shards)
    for run, ends_at in enumerate(ends):
        make_run(paths, run, ends_at=ends_at)
    expected = tensors_of(paths)
    hide(paths, 0, 1, 2)
    if room == "too little":
        monkeypatch.setattr(gather_notes, "SPARE_BYTES_PER_RUN", 0)
        monkeypatch.setattr(layout, "PAGE_BYTES", 64)
    if room == "for no fillers":
        monkeypatch.setattr(layout, "MAX_TENSORS", len(expected) + 20)  # with the experiment's own
    for run in range(3):
        bring_back(paths, run)
        Gatherer(paths.folder).add(run)  # each time by another process
        assert gathered_runs(paths.folder) == set(range(run + 1))
        assert all(part.state != "damaged" for part in verify(paths.folder).parts)
    Gatherer(paths.folder).finish()
    assert_gathered(paths, expected, shards=3 if keep_shards else 0)
    there = read_layout(paths.gathered)
    late = [end for end in ends[1:] if end is not None]  # the first was there when the file was planned
    assert bool(there.unused) == (bool(late) and room != "for no fillers") or room == "too little"
    assert [EarlyEnd.of(run) for run in there.flannel["runs"]] == [
        None if end is None else EarlyEnd(end, 6, "enough") for end in ends
    ]
    if keep_shards:  # all of them are there now
        gather(paths.folder)
        assert not read_layout(paths.gathered).unused
        assert_gathered(paths, expected, shards=3)


def test_an_index_over_runs_of_different_lengths(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path / "flannel3", gather="index")
    make_run(paths, 1, ends_at=2, key_prefix="run_1_")
    gather(paths.folder)
    assert verify(paths.folder).ok
    assert FILLER not in paths.index.read_text()
    with open_recording(paths.index) as recording:
        assert [run.num_rows for run in recording] == [7, 3, 7]
