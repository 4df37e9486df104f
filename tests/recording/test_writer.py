import dataclasses
import errno
import gc
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import load_file

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import RunPaths
from flannel_pl.recording.formats.safetensors.layout import read_layout
from flannel_pl.recording.formats.safetensors.sink import shard_bytes
from tests.recording.damage import fail_at
from tests.recording.recording_samples import (
    bits,
    fill,
    journal_of,
    make_entry,
    make_schema,
    make_writer,
    write_rows,
)

NO_SPACE, IO_ERROR = errno.ENOSPC, errno.EIO


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, static={"recorded_tokens": np.arange(30)})
    rows = write_rows(writer, range(7))
    writer.finish()
    loaded = load_file(RunPaths(tmp_path).recording)
    names = writer.schema.names
    assert loaded.keys() == {*names, "checksums", "recorded_tokens"}
    for row, expected in enumerate(rows):
        for position, name in enumerate(names):
            assert bits(loaded[name][row]) == expected[name]
            assert loaded["checksums"].numpy()[row, position] == xxhash.xxh3_64_intdigest(expected[name])
    assert loaded["recorded_tokens"].tolist() == list(range(30))
    assert not RunPaths(tmp_path).partial.exists()


def test_payload_of_a_nan_survives(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, schema=make_schema(tensors=["losses"], max_steps=2, every_n_steps=2))
    for row, payload in enumerate((0x7FC1, 0xFFFF - 2**16)):
        buffer = writer.acquire()
        buffer.tensors["losses"].view(torch.int16).fill_(payload)
        writer.submit(buffer, row)
    writer.finish()
    losses = load_file(RunPaths(tmp_path).recording)["losses"]
    assert losses.isnan().all()
    assert losses.view(torch.int16).tolist() == [0x7FC1, -1]


def test_buffers_have_the_shapes_and_dtypes_of_the_schema(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, schema=make_schema(dtypes={"grads": "float32", "logits": "float16"}))
    buffer = writer.acquire()
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in buffer.tensors.items()} == {
        "recorded_steps": (torch.int64, ()),
        "embeddings": (torch.bfloat16, (30, 4)),
        "grads": (torch.float32, (30, 4)),
        "momentum": (torch.bfloat16, (30, 4)),
        "variance": (torch.bfloat16, (30, 4)),
        "logits": (torch.float16, (30,)),
        "losses": (torch.bfloat16, ()),
        "losses_f32": (torch.float32, ()),
        "learning_rates": (torch.float32, ()),
        "grad_norms": (torch.float32, ()),
    }
    assert all(tensor.data_ptr() % 64 == 0 for tensor in buffer.tensors.values())
    writer.abort("enough")


def test_metadata_and_size(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, metadata={"run": 5, "seed": 47, "swept": {"model.learning_rate": 0.1}})
    write_rows(writer, range(7))
    writer.finish()
    layout = read_layout(RunPaths(tmp_path).recording)
    assert layout.header_is_right
    assert layout.flannel == {
        "header_checksum": layout.flannel["header_checksum"],
        "columns": {column.name: column.said for column in writer.schema.columns},
        **{"schema": 2, "run": 5, "seed": 47, "swept": {"model.learning_rate": 0.1}, "num_rows": 7},
        **{"every_n_steps": 1, "checksum_columns": list(writer.schema.names), "static_checksums": {}},
    }
    assert shard_bytes(writer.schema, metadata=layout.metadata["flannel"]) == layout.total_bytes
    assert 0 <= layout.total_bytes - shard_bytes(writer.schema) <= 4096


def test_mode_of_the_file_follows_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        writer = make_writer(tmp_path)
    finally:
        os.umask(old)
    write_rows(writer, range(7))
    writer.finish()
    assert stat.S_IMODE(RunPaths(tmp_path).recording.stat().st_mode) == 0o640


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    RunPaths(tmp_path).recording.write_text("precious")
    with pytest.raises(
        UserError, match=r"recording.safetensors exists, .* never overwritten. Choose another"
    ):
        make_writer(tmp_path)
    assert list(tmp_path.iterdir()) == [RunPaths(tmp_path).recording]


def test_a_recording_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)
    write_rows(writer, range(7))
    RunPaths(tmp_path).recording.write_text("precious")
    with pytest.raises(UserError, match="appeared during the run"):
        writer.finish()
    assert RunPaths(tmp_path).recording.read_text() == "precious"
    assert RunPaths(tmp_path).partial.exists()


def test_the_journal_follows(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, commit_every_s=0.0, journal_entry=make_entry(run=2, device="cuda:1"))
    assert journal_of(tmp_path).state == "running"
    write_rows(writer, range(3))
    deadline_s = time.monotonic() + 10
    while journal_of(tmp_path).rows_committed < 3:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    entry = journal_of(tmp_path)
    assert (entry.rows_written, entry.num_rows) == (3, 7)
    assert entry.loss == pytest.approx(1 / 3)
    assert entry.bytes_written == 3 * writer.schema.row_bytes
    assert (entry.run, entry.device) == (2, "cuda:1")
    write_rows(writer, range(3, 7))
    writer.finish()
    assert (journal_of(tmp_path).state, journal_of(tmp_path).rows_committed) == ("done", 7)


def test_rows_are_committed_in_time_even_if_no_further_row_comes(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, commit_every_s=0.2)
    write_rows(writer, [0])
    deadline_s = time.monotonic() + 10
    while journal_of(tmp_path).rows_committed < 1:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    writer.abort("enough")


def test_the_disk_may_take_a_row_piecemeal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, memoryview(data)[:37], offset))
    writer = make_writer(tmp_path)
    rows = write_rows(writer, range(7))
    writer.finish()
    loaded = load_file(RunPaths(tmp_path).recording)
    assert [bits(row) for row in loaded["embeddings"]] == [row["embeddings"] for row in rows]


def test_a_system_without_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    writer = make_writer(tmp_path / "a")
    write_rows(writer, range(7))
    writer.finish()
    monkeypatch.delattr(os, "posix_fallocate")
    writer = make_writer(tmp_path / "b")
    write_rows(writer, range(7))
    writer.finish()
    assert (tmp_path / "a/recording.safetensors").read_bytes() == (
        tmp_path / "b/recording.safetensors"
    ).read_bytes()


def test_a_slow_disk_makes_training_wait_and_drops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite

    def slow(fd: int, data: memoryview, offset: int) -> int:
        time.sleep(0.001)
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    writer = make_writer(tmp_path, schema=make_schema(max_steps=39), num_buffers=2)
    places, rows, waited_s = set(), [], 0.0
    for row in range(40):
        start_s = time.monotonic()
        buffer = writer.acquire()
        waited_s += time.monotonic() - start_s
        places.add(buffer.tensors["embeddings"].data_ptr())
        fill(buffer, row)
        rows.append(bytes(buffer.row_bytes["embeddings"]))
        writer.submit(buffer, row)
    writer.finish()
    assert len(places) == 2
    assert waited_s > 0.2
    assert [bits(row) for row in load_file(RunPaths(tmp_path).recording)["embeddings"]] == rows


def test_the_thread_waits_until_the_row_is_ready(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, schema=make_schema(max_steps=1))
    for row in range(2):
        buffer = writer.acquire()

        def copy_arrives(tensors: dict[str, torch.Tensor] = buffer.tensors, value: int = row) -> None:
            time.sleep(0.05)
            tensors["embeddings"].fill_(value + 5)

        writer.submit(buffer, row, copy_arrives)
    writer.finish()
    assert load_file(RunPaths(tmp_path).recording)["embeddings"][:, 0, 0].tolist() == [5, 6]


def test_an_error_while_waiting_for_a_row_is_raised_to_the_caller(tmp_path: Path) -> None:
    def fails() -> None:
        raise ValueError("the device is gone")

    writer = make_writer(tmp_path)
    writer.submit(writer.acquire(), 0, fails)
    with pytest.raises(
        RunError, match=r"Cannot write row 0 of .*partial: ValueError: the device is gone"
    ) as caught:
        writer.finish()
    assert isinstance(caught.value.__cause__, ValueError)
    assert "the device is gone" in journal_of(tmp_path).message


@pytest.mark.parametrize("rows", [(1,), (0, 0), (0, 2), (-1,), (*range(7), 7)])
def test_rows_out_of_order_are_refused(tmp_path: Path, rows: tuple[int, ...]) -> None:
    writer = make_writer(tmp_path)
    write_rows(writer, rows[:-1])
    with pytest.raises(ValueError, match=f"got row {rows[-1]}, expected row {len(rows) - 1} of 7"):
        writer.submit(writer.acquire(), rows[-1])
    writer.abort("enough")


def test_buffers_are_used_once(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, num_buffers=2)
    first, second = writer.acquire(), writer.acquire()
    with pytest.raises(ValueError, match="every buffer is held"):
        writer.acquire()
    writer.submit(first, 0)
    with pytest.raises(ValueError, match="not acquired"):
        writer.submit(first, 1)
    writer.submit(second, 1)
    writer.abort("enough")
    with pytest.raises(ValueError, match="is closed"):
        writer.acquire()


def test_an_unfinished_recording_never_gets_its_name(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)
    write_rows(writer, range(5))
    with pytest.raises(RunError, match=r"recording.partial ended at row 5 of 7"):
        writer.finish()
    assert not RunPaths(tmp_path).recording.exists()
    assert (journal_of(tmp_path).state, journal_of(tmp_path).rows_committed) == ("failed", 5)
    writer.abort("again")
    assert "ended at row 5" in journal_of(tmp_path).message


def test_abort_keeps_what_was_submitted(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, commit_every_s=1000)
    rows = write_rows(writer, range(3))
    writer.acquire()
    writer.abort("loss is nan")
    writer.abort("again")
    entry = journal_of(tmp_path)
    assert (entry.state, entry.rows_committed, entry.message) == ("failed", 3, "loss is nan")
    partial = load_file(RunPaths(tmp_path).partial)
    assert [bits(row) for row in partial["grads"][:3]] == [row["grads"] for row in rows]
    assert not partial["grads"][3:].any()


def test_a_later_attempt_keeps_the_first_rows(tmp_path: Path) -> None:
    writer = make_writer(tmp_path / "a")
    write_rows(writer, range(5))
    writer.abort("killed")
    writer = make_writer(tmp_path / "a", first_row=3)
    assert (journal_of(tmp_path / "a").rows_written, journal_of(tmp_path / "a").first_row) == (3, 3)
    write_rows(writer, range(3, 7))
    writer.finish()
    whole = make_writer(tmp_path / "b")
    write_rows(whole, range(7))
    whole.finish()
    assert (tmp_path / "a/recording.safetensors").read_bytes() == (
        tmp_path / "b/recording.safetensors"
    ).read_bytes()


def test_a_later_attempt_with_other_settings_is_refused(tmp_path: Path) -> None:
    make_writer(tmp_path).abort("killed")
    with pytest.raises(RunError, match=r"other settings or metadata: num_rows 7, now 10\. Rep"):
        make_writer(tmp_path, first_row=1, schema=make_schema(max_steps=9))
    with pytest.raises(RunError, match=r"begun with other settings or metadata: seed 42, now 43\. R"):
        make_writer(tmp_path, first_row=1, metadata={"run": 0, "seed": 43, "swept": {}})
    with pytest.raises(RunError, match=r"Cannot write .*nowhere.*nowhere is not there any more"):
        make_writer(tmp_path / "nowhere", first_row=1)


def test_data_then_name_then_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that a crash needs at the end: everything synced before the name, the name before "done"."""
    paths = RunPaths(tmp_path)
    writer = make_writer(tmp_path, commit_every_s=1000)
    write_rows(writer, range(7))
    files = {path.stat().st_ino: path.name for path in (tmp_path, paths.partial, paths.journal)}
    calls: list[str] = []

    def traced(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *arguments: Any) -> Any:
            at = files[os.fstat(target).st_ino] if isinstance(target, int) else target.name
            calls.append(f"{name} {at}")
            return real(target, *arguments)

        return call

    for name in ("pwrite", "fsync", "replace"):
        monkeypatch.setattr(os, name, traced(name, getattr(os, name)))
    writer.finish()
    assert calls[-5:] == [
        "fsync recording.partial",
        "replace recording.partial",
        f"fsync {tmp_path.name}",
        "pwrite journal",
        "fsync journal",
    ]
    assert "pwrite recording.partial" not in calls[-5:]


def record_small(folder: Path) -> None:
    writer = make_writer(folder, schema=make_schema(max_steps=2), commit_every_s=0.0, num_buffers=1)
    try:
        write_rows(writer, range(2))
        writer.checkpoint(folder / "checkpoint-1-0.ckpt", b"weights")
        write_rows(writer, [2])
        writer.finish()
    finally:
        writer.abort("cleaned up")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *[(name, code) for name in ("pwrite", "fsync", "replace") for code in (NO_SPACE, IO_ERROR)],
        ("posix_fallocate", NO_SPACE),  # after any other answer rows are written without a reservation
    ],
)
def test_every_single_failure_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    record_small(tmp_path / "good")
    good = (tmp_path / "good/recording.safetensors").read_bytes()
    gc.collect()  # what earlier tests left open is closed now, not in between
    k, num_open, threads = 0, len(list(Path("/dev/fd").iterdir())), threading.enumerate()
    while True:
        k += 1
        paths = RunPaths(tmp_path / f"{k}")
        failing, calls = fail_at(name, k, code=code)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing)
            try:
                record_small(paths.folder)
            except RunError as error:
                message = str(error)
            else:
                message = ""
        assert set(threading.enumerate()) <= set(threads)
        assert len(list(Path("/dev/fd").iterdir())) == num_open
        if calls[0] < k:
            break
        assert f"Cannot write {paths.folder}" in message
        assert os.strerror(code) in message
        assert (" free. Free some space" in message) == (code == NO_SPACE)
        # Only a failure after the file was complete and synced may leave the final name.
        assert not paths.recording.exists() or paths.recording.read_bytes() == good
        checkpoints = [path.read_bytes() for path in paths.folder.glob("checkpoint*")]
        assert checkpoints in ([], [b"weights"])
        if paths.journal.exists() and paths.journal.stat().st_size:
            assert journal_of(paths.folder).state != "done"
    assert message == ""
    assert k > {"pwrite": 35, "fsync": 11, "replace": 2, "posix_fallocate": 2}[name]


def test_a_failed_write_is_not_tried_again_and_wakes_a_waiting_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = make_writer(tmp_path, num_buffers=1)
    allow, calls = threading.Event(), [0]

    def fails(fd: int, data: memoryview, offset: int) -> int:
        calls[0] += 1
        allow.wait(10)
        raise OSError(IO_ERROR, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fails)
        writer.submit(writer.acquire(), 0)
        threading.Timer(0.2, allow.set).start()
        with pytest.raises(RunError, match=r"Cannot write .*recording.partial: Input/output error") as caught:
            writer.acquire()
        assert isinstance(caught.value.__cause__, OSError)
        for _ in range(2):
            with pytest.raises(RunError, match="Input/output error"):
                writer.raise_if_failed()
        assert calls[0] == 1
    with pytest.raises(RunError, match="Input/output error"):
        writer.finish()
    writer.abort("the disk is gone")
    assert journal_of(tmp_path).rows_written == 0


def test_a_failed_preallocation_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing, _ = fail_at("posix_fallocate", 1, code=NO_SPACE)
    monkeypatch.setattr(os, "posix_fallocate", failing)
    with pytest.raises(
        RunError, match=r"No space left on device. Need \d.* KiB, have .* free. Free some space"
    ):
        make_writer(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"Cannot write .*recording.partial: .*. Check the disk"):
        make_writer(tmp_path / "file" / "run_0")


# Not ru_maxrss: for a child that starts at the size of the process that started it, here pytest with torch.
_PEAK_CODE = r"""
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.recording.recording_samples import make_schema, make_writer
schema = make_schema(num_tokens=2000, hidden_dim=64, max_steps=int(sys.argv[2]))
writer = make_writer(Path(sys.argv[1]), schema=schema)
for row in range(writer.schema.num_rows):
    writer.submit(writer.acquire(), row)
writer.finish()
peak_kib = re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]
print(peak_kib)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    peaks_kib = []
    for steps in (20, 300):
        command = [
            sys.executable,
            "-c",
            _PEAK_CODE,
            str(tmp_path / str(steps)),
            str(steps),
            str(Path(__file__).parents[2]),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks_kib.append(int(result.stdout))
    assert (tmp_path / "300/recording.safetensors").stat().st_size > 290 * 2**20
    assert peaks_kib[1] - peaks_kib[0] < 16 * 1024


def test_entry_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    entry = make_entry()
    before = dataclasses.replace(entry)
    make_writer(tmp_path, journal_entry=entry).abort("enough")
    assert entry == before
