import errno
import os
import sys
import time
from pathlib import Path

import pytest

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import RunPaths
from flannel_pl.recording.formats.safetensors.layout import read_layout
from flannel_pl.recording.writing.journal import JournalEntry
from tests.recording.damage import fail_at
from tests.recording.recording_samples import journal_of, make_schema, make_writer, write_rows

NO_SPACE, IO_ERROR = errno.ENOSPC, errno.EIO


def test_an_attempt_that_was_stopped_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make_writer(tmp_path / "a")
    write_rows(writer, range(3))
    writer.abort("SIGTERM", state="stopped")
    entry = journal_of(tmp_path / "a")
    assert (entry.state, entry.rows_committed, entry.message) == ("stopped", 3, "SIGTERM")
    writer = make_writer(tmp_path / "b")
    failing, _ = fail_at("pwrite", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing)
        write_rows(writer, [0])
        writer.abort("SIGTERM", state="stopped")
    assert journal_of(tmp_path / "b").state == "failed"


def test_a_checkpoint_comes_after_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = RunPaths(tmp_path)
    writer = make_writer(tmp_path, commit_every_s=1000)
    seen: list[tuple[JournalEntry, bytes, bytes]] = []

    def look() -> None:
        # What a power cut now would leave: committed rows, and a whole checkpoint.
        seen.append((journal_of(tmp_path), path.read_bytes(), paths.partial.read_bytes()))

    rows = []
    for first in (0, 3):
        path = paths.checkpoint(first + 2, "0" * 16)
        rows += write_rows(writer, range(first, first + 3))
        writer.checkpoint(path, bytes([first]) * 100_000, then=look)
        rows += write_rows(writer, [6]) if first else []
        deadline_s = time.monotonic() + 10
        while len(seen) <= first // 3:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)
    writer.finish()
    start = read_layout(paths.recording).offsets["embeddings"]
    for number, (entry, data, partial) in enumerate(seen):
        assert entry.state == "running"
        assert entry.rows_committed >= 3 + 3 * number
        assert data == bytes([3 * number]) * 100_000
        for row in range(3 + 3 * number):
            assert partial[start + row * 240 : start + row * 240 + 240] == rows[row]["embeddings"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("checkpoint-2-0000000000000000.ckpt", "checkpoint-5-0000000000000000.ckpt"),
        *("journal", "recording.safetensors"),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads names of open files from /proc")
def test_a_checkpoint_is_synced_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint-2-0.ckpt"
    path.write_bytes(b"old")
    writer = make_writer(tmp_path, commit_every_s=1000)
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(fd: int) -> None:
        calls.append(f"fsync {Path(f'/proc/self/fd/{fd}').readlink().name}")
        fsync(fd)

    def traced_replace(old: Path, new: Path) -> None:
        calls.append(f"replace {old.name}")
        assert path.read_bytes() == b"old"
        replace(old, new)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    write_rows(writer, range(3))
    writer.checkpoint(path, b"new", then=lambda: calls.append("then"))
    writer.abort("enough", state="stopped")
    partial = f"{path.name}.partial"
    assert calls[: calls.index("then") + 1] == [
        *("fsync recording.partial", "fsync journal", f"fsync {partial}"),
        *(f"replace {partial}", f"fsync {tmp_path.name}", "then"),
    ]
    assert path.read_bytes() == b"new"


def test_a_failed_checkpoint_ends_the_attempt_and_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint-2-0.ckpt"
    path.write_bytes(b"old")
    writer = make_writer(tmp_path, commit_every_s=1000)
    pwrite = os.pwrite

    def fails(fd: int, data: memoryview, offset: int) -> int:
        if bytes(data[:3]) == b"new":
            raise OSError(NO_SPACE, os.strerror(NO_SPACE))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", fails)
    write_rows(writer, range(7))
    pruned: list[int] = []
    writer.checkpoint(path, b"new", then=lambda: pruned.append(1))
    with pytest.raises(RunError, match=r"Cannot write .*checkpoint-2-0.ckpt: No space left on device. Need"):
        writer.finish()
    assert (path.read_bytes(), pruned) == (b"old", [])
    assert not list(tmp_path.glob("*.ckpt.partial"))
    assert (journal_of(tmp_path).state, journal_of(tmp_path).rows_committed) == ("failed", 7)


def test_a_closed_writer_takes_no_checkpoint(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)
    writer.abort("enough")
    with pytest.raises(ValueError, match="is closed"):
        writer.checkpoint(tmp_path / "x.ckpt", b"")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_bad_loss_is_noted_and_recording_goes_on(tmp_path: Path, bad: float) -> None:
    writer = make_writer(tmp_path, schema=make_schema(max_steps=18, every_n_steps=3))
    for row, loss in enumerate((float("nan"), 1.0, 2.0, bad, 3.0, bad, 4.0)):
        buffer = writer.acquire()
        buffer.tensors["recorded_steps"].fill_(3 * row)
        buffer.tensors["losses_f32"].fill_(loss)
        buffer.tensors["grad_norms"].fill_(loss)  # zero beside NaN is a step without a batch that counts
        writer.submit(buffer, row)
        if row == 2:
            writer.abort("killed")
            assert journal_of(tmp_path).first_bad_step is None
            writer = make_writer(
                tmp_path, schema=writer.schema, journal_entry=journal_of(tmp_path), first_row=3
            )
    writer.finish()
    entry = journal_of(tmp_path)
    assert (entry.state, entry.first_bad_step, entry.loss) == ("done", 9, 4.0)


def test_a_file_that_somebody_holds_is_not_emptied(tmp_path: Path) -> None:
    first = make_writer(tmp_path, commit_every_s=0.0)
    rows = write_rows(first, range(6))
    second = make_writer(tmp_path)
    write_rows(second, range(7), seed=1)
    second.finish()
    content = RunPaths(tmp_path).recording.read_bytes()
    rows += write_rows(first, [6])
    with pytest.raises((RunError, UserError)):
        first.finish()
    assert RunPaths(tmp_path).recording.read_bytes() == content


def test_only_the_file_that_was_written_gets_the_name(tmp_path: Path) -> None:
    first = make_writer(tmp_path)
    write_rows(first, range(7))
    second = make_writer(tmp_path)
    with pytest.raises(RunError, match=r"recording.partial was replaced by another process while"):
        first.finish()
    assert not RunPaths(tmp_path).recording.exists()
    second.abort("enough")
