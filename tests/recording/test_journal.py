import dataclasses
import errno
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash

from flannel_pl.errors import RunError
from flannel_pl.recording.writing.journal import SLOT_BYTES, Journal
from tests.recording.recording_samples import make_entry


def test_round_trip(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert journal.read() is None
    entry = make_entry(run=3, swept={"model.learning_rate": 3e-4}, loss=1.25, message="caf\u00e9\nline")
    journal.write(entry, durable=True)
    assert journal.read() == entry


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 0.1])
def test_any_loss_round_trips(tmp_path: Path, loss: float) -> None:
    journal = Journal(tmp_path / "journal")
    journal.write(make_entry(loss=loss))
    entry = journal.read()
    assert entry is not None
    assert entry.loss is not None
    assert repr(entry.loss) == repr(loss)
    assert b"NaN" not in journal.path.read_bytes()


def test_live_metrics_round_trip_and_make_way_for_everything_else(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    live = {"dead/speed": 0.1 + 0.2, "live/speed": math.inf, "live/origin_radius": math.nan}
    journal.write(make_entry(live=live))
    assert b"NaN" not in journal.path.read_bytes()
    assert b"Infinity" not in journal.path.read_bytes()
    entry = journal.read()
    assert entry is not None
    assert repr(entry.live) == repr(live)
    many = {f"set{number}/speed": 0.1 for number in range(200)}
    journal.write(make_entry(live=many, message="the cause"))
    entry = journal.read()
    assert entry is not None
    assert (entry.live, entry.message) == ({}, "the cause")


def test_size_is_fixed_and_the_newest_entry_wins(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for row in range(25):
        Journal(journal.path).write(make_entry(rows_written=row))
        assert journal.path.stat().st_size == 2 * SLOT_BYTES
        entry = journal.read()
        assert entry is not None
        assert entry.rows_written == row


def test_too_long_a_message_is_cut(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for message in ("x" * 100_000, "\u0e01" * 100_000, "\U0001f600" * 5000):
        journal.write(make_entry(message=message))
        entry = journal.read()
        assert entry is not None
        assert message.startswith(entry.message)
        assert len(entry.message) > 200
        assert journal.path.stat().st_size == 2 * SLOT_BYTES


def test_what_cannot_fit_is_refused_and_the_old_entry_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.write(make_entry())
    with pytest.raises(ValueError, match="journal entry of run 0 takes"):
        journal.write(make_entry(swept={"x": "y" * 5000}))
    assert journal.read() is not None


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("num_bytes", [0, 1, 30, 500, SLOT_BYTES - 2])
def test_a_torn_write_loses_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, num_bytes: int
) -> None:
    journal = Journal(tmp_path / "journal")
    # Fixed times: else the last digit that is torn off is, once in a while, the one that was there before.
    for row in range(1, rows + 1):
        journal.write(make_entry(rows_written=row, started_s=1.0, updated_s=2.0))
    pwrite = os.pwrite

    def torn(fd: int, data: memoryview, offset: int) -> int:
        pwrite(fd, data[:num_bytes], offset)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", torn)
        with pytest.raises(OSError, match="Input/output error"):
            journal.write(make_entry(rows_written=rows + 1, started_s=1.0, updated_s=2.0))
    entry = journal.read()
    assert entry is not None
    assert entry.rows_written == rows
    journal.write(make_entry(rows_written=9))
    assert dataclasses.replace(journal.read() or make_entry(), updated_s=0, started_s=0) == make_entry(
        rows_written=9, updated_s=0, started_s=0
    )


def test_a_journal_from_before_a_field_was_added_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.write(make_entry(rows_written=5))
    slot = journal.path.read_bytes()[SLOT_BYTES:]
    body = (
        slot[: SLOT_BYTES - 18]
        .replace(b', "first_bad_step": null, "first_row": 0', b"")
        .replace(b', "live": {}', b"")
        .ljust(SLOT_BYTES - 18)
    )
    assert not any(word in body for word in (b"first_bad_step", b"first_row", b"live"))
    old = body + b" " + xxhash.xxh3_64_hexdigest(body).encode() + b"\n"
    journal.path.write_bytes(bytes(SLOT_BYTES) + old)
    entry = journal.read()
    assert entry is not None
    assert (entry.rows_written, entry.first_bad_step, entry.first_row) == (5, None, 0)
    assert entry.live == {}


def test_a_flipped_bit_never_gives_a_wrong_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    journal = Journal(tmp_path / "journal")
    entries = [make_entry(rows_written=row, loss=row / 3) for row in (1, 2)]
    for entry in entries:
        journal.write(entry)
    content = bytearray(journal.path.read_bytes())
    draw, outcomes = np.random.default_rng(0), [0, 0]
    with journal.path.open("r+b", buffering=0) as file:
        for position in range(len(content)):
            for bit in draw.choice(8, size=2, replace=False):
                file.seek(position)
                file.write(bytes([content[position] ^ (1 << int(bit))]))
                outcomes[entries.index(journal.read() or make_entry())] += 1
            file.seek(position)
            file.write(content[position : position + 1])
    assert journal.read() == entries[1]
    assert min(outcomes) > 4000


def test_a_flipped_bit_in_the_only_entry_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    journal = Journal(tmp_path / "journal")
    journal.write(make_entry())
    content = journal.path.read_bytes()
    for position in range(SLOT_BYTES, 2 * SLOT_BYTES - 1, 37):
        journal.path.write_bytes(
            content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]
        )
        with pytest.raises(RunError, match="journal is damaged"):
            journal.read()


def test_both_slots_damaged(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.path.write_bytes(b"?" * 2 * SLOT_BYTES)
    with pytest.raises(RunError, match=r"journal is damaged: neither .* writes the journal anew"):
        journal.read()
    journal.write(make_entry())
    assert journal.read() is not None


def test_another_process_reads_while_it_is_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.write(make_entry())
    code = (
        "import sys; from pathlib import Path; from flannel_pl.recording.writing.journal import Journal\n"
        "seen = [0]; print('ready', flush=True)\n"
        "while seen[-1] < 3000: seen.append(Journal(Path(sys.argv[1])).read().rows_written)\n"
        "assert seen == sorted(seen); assert 'torch' not in sys.modules; print(len(set(seen)))"
    )
    command = [sys.executable, "-c", code, str(journal.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for row in range(1, 3001):
            journal.write(make_entry(rows_written=row, message="m" * (row % 1000)))
        out, err = reader.communicate(timeout=60)
    assert reader.returncode == 0, err
    assert int(out) > 1
