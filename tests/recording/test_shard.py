"""An unfinished file whose header is written anew: at every moment it can be read, and no row is lost."""

import contextlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from flannel_pl.errors import RunError
from flannel_pl.experiment import RunPaths
from flannel_pl.paths import header_copy_of
from flannel_pl.recording.checking.verify import num_good_rows, verify
from flannel_pl.recording.formats.attempts import attempts_of
from flannel_pl.recording.formats.early_end import MAX_REASON_CHARS, EarlyEnd
from flannel_pl.recording.formats.metadata import CHECKSUM_KEY, dump_metadata
from flannel_pl.recording.formats.safetensors.layout import FILLER, FileLayout, plan_layout, read_layout
from flannel_pl.recording.writing.journal import Journal
from tests.recording.damage import fail_at
from tests.recording.recording_samples import make_old, make_schema, make_writer, write_rows

HERE = {"host": "here", "threads": 1, "versions": {"torch": "2.13"}}
THERE = HERE | {"host": "there"}
OLD = HERE | {"device_name": "x86_64", "device": "cpu"}
IO_ERROR = 5


def begin(folder: Path) -> Path:
    """Records five of seven rows."""
    writer = make_writer(folder, environment=HERE)
    write_rows(writer, range(5))
    writer.abort("killed")
    return RunPaths(folder).partial


def go_on(folder: Path) -> None:
    """Records the rest, from the fourth row on."""
    metadata = described_in(RunPaths(folder).partial)
    writer = make_writer(folder, first_row=3, environment=THERE, metadata=metadata)
    try:
        write_rows(writer, range(3, 7))
        writer.finish()
    finally:
        writer.abort("cleaned up")


def finished(folder: Path) -> tuple[dict[str, bytes], list[tuple[int, Any]]]:
    """What a finished file holds: its tensors, and where they were made."""
    path = RunPaths(folder).recording
    assert verify(path).ok
    tensors = {name: array.tobytes() for name, array in load_file(path).items()}
    attempts = attempts_of(read_layout(path).flannel)
    return tensors, [(one.first_row, one.environment.get("host")) for one in attempts]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    writer = make_writer(folder)
    write_rows(writer, range(7))
    writer.finish()
    return finished(folder)[0]


def test_every_attempt_is_in_the_file(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    begin(tmp_path)
    assert attempts_of(read_layout(RunPaths(tmp_path).partial).flannel)[0].environment == HERE
    make_writer(tmp_path, first_row=4, environment=THERE | {"host": "in vain"}).abort("killed again")
    go_on(tmp_path)
    assert finished(tmp_path) == (undisturbed, [(0, "here"), (3, "there")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal", "recording.safetensors"]


@pytest.mark.parametrize("cut", [0, 4, 8, 300, 2000, 4096, 8192, -1])
def test_a_torn_header_costs_nothing(tmp_path: Path, undisturbed: dict[str, bytes], cut: int) -> None:
    partial = begin(tmp_path)
    old = read_layout(partial).header
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path, copy)
    make_writer(copy, first_row=3, environment=THERE).abort("only the header is of interest")
    new = read_layout(RunPaths(copy).partial).header
    assert len(new) == len(old)
    assert new != old
    header_copy_of(partial).write_bytes(new)
    with partial.open("r+b") as file:
        file.write((new[:cut] + b"\0" * 512 + old)[: len(old)] if cut >= 0 else old)
    assert num_good_rows(partial) == 5
    assert [part.state for part in verify(tmp_path).parts] == ["unfinished"]
    go_on(tmp_path)
    assert finished(tmp_path) == (undisturbed, [(0, "here"), (3, "there")])
    assert not header_copy_of(partial).exists()


def test_a_copy_that_is_of_no_use_is_not_used(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    partial = begin(tmp_path)
    other = tmp_path / "other"
    make_writer(other, environment=HERE | {"host": "elsewhere"}).abort("another file")
    for content in (b"", b"torn", read_layout(RunPaths(other).partial).header):
        header_copy_of(partial).write_bytes(content)
        assert attempts_of(read_layout(partial).flannel)[0].environment == HERE
    make_writer(tmp_path, environment=HERE).abort("begun anew")
    assert not header_copy_of(partial).exists()


@pytest.mark.parametrize("name", ["pwrite", "fsync", "replace", "posix_fallocate", "ftruncate", "open"])
@pytest.mark.parametrize("room", ["enough", "too little"])
def test_whichever_call_fails_while_it_is_reopened_the_rows_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes], name: str, room: str
) -> None:
    begun = begin(tmp_path / "begun")
    if room == "too little":
        make_old(begun, OLD, slack_bytes=20)
    metadata = described_in(begun)
    for k in range(1, 100):
        folder = tmp_path / str(k)
        shutil.copytree(tmp_path / "begun", folder)
        failing, calls = fail_at(name, k, code=IO_ERROR)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing)
            said = ""
            try:
                make_writer(folder, first_row=3, environment=THERE, metadata=metadata).abort("that was all")
            except RunError as error:
                said = str(error)
        assert said == "" or re.search(f"Cannot (write|read) {folder}", said)
        if calls[0] < k:
            break
        assert num_good_rows(RunPaths(folder).partial) >= 3
        go_on(folder)
        assert finished(folder)[0] == undisturbed
        assert sorted(path.name for path in folder.iterdir()) == ["journal", "recording.safetensors"]
    assert k > 1 or name in ("posix_fallocate", "ftruncate")


def described_in(partial: Path) -> dict[str, Any]:
    layout: FileLayout = read_layout(partial)
    return {
        key: layout.flannel[key] for key in ("run", "seed", "swept", "provenance") if key in layout.flannel
    }


@pytest.mark.parametrize("slack_bytes", [None, 20, 0])
def test_a_file_without_room_is_gone_on_with(
    tmp_path: Path, undisturbed: dict[str, bytes], slack_bytes: int | None
) -> None:
    partial = begin(tmp_path)
    make_old(partial, OLD, slack_bytes=slack_bytes)
    before = len(read_layout(partial).header)
    metadata = described_in(partial)
    make_writer(tmp_path, first_row=3, environment=THERE, metadata=metadata).abort("first")
    assert (len(read_layout(partial).header) > before) == (slack_bytes is not None)
    for k in range(40):  # however often
        writer = make_writer(
            tmp_path, first_row=4, environment=THERE | {"host": f"host {k}"}, metadata=metadata
        )
        writer.abort("again")
    writer = make_writer(tmp_path, first_row=5, environment=HERE, metadata=metadata)
    write_rows(writer, [5, 6])
    writer.finish()
    assert finished(tmp_path) == (undisturbed, [(0, "here"), (3, "there"), (4, "host 39"), (5, "here")])


def test_room_never_runs_out(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    begin(tmp_path)
    sizes = set()
    for row in range(3, 7):
        writer = make_writer(
            tmp_path, first_row=row, environment={"host": f"host {row}", "much": f"{row}" * 9000}
        )
        sizes.add(len(read_layout(RunPaths(tmp_path).partial).header))
        write_rows(writer, [row])
        if row == 6:
            writer.finish()
        else:
            writer.abort("killed")
    assert len(sizes) > 1
    assert finished(tmp_path) == (undisturbed, [(0, "here"), *((row, f"host {row}") for row in range(3, 7))])


ENDED = EarlyEnd(4, 6, "enough")


def end_early(folder: Path, *, reserve: bool = True) -> None:
    metadata = described_in(RunPaths(folder).partial)
    writer = make_writer(folder, first_row=4, environment=THERE, metadata=metadata, reserve=reserve)
    try:
        write_rows(writer, [4])
        writer.finish(ENDED)
    finally:
        writer.abort("cleaned up")


@pytest.mark.parametrize("room", ["enough", "too little", "not reserved"])
@pytest.mark.parametrize("name", ["pwrite", "fsync", "replace", "posix_fallocate", "copy_file_range"])
def test_an_early_end_that_fails_can_be_repeated_or_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes], name: str, room: str
) -> None:
    begun = begin(tmp_path / "begun")
    if room == "too little":
        make_old(begun, OLD, slack_bytes=300)  # enough for an attempt, not for fillers
    for k in range(1, 200):
        folder = tmp_path / str(k)
        shutil.copytree(tmp_path / "begun", folder)
        failing, calls = fail_at(name, k, code=IO_ERROR)
        with monkeypatch.context() as patch, contextlib.suppress(RunError):
            patch.setattr(os, name, failing)
            end_early(folder, reserve=room != "not reserved")
        if calls[0] < k:
            break
        if not RunPaths(folder).recording.exists():
            assert num_good_rows(RunPaths(folder).partial) >= 4
            other = tmp_path / f"{k} gone on from"
            shutil.copytree(folder, other)
            go_on(other)
            assert finished(other)[0] == undisturbed
            assert "ended" not in read_layout(RunPaths(other).recording).flannel
            end_early(folder, reserve=room != "not reserved")
        layout = read_layout(RunPaths(folder).recording)
        assert EarlyEnd.of(layout.flannel) == ENDED
        assert layout.unused or room != "enough"
        assert not layout.unused or room != "not reserved"
        tensors = load_file(RunPaths(folder).recording)
        assert {key: x.tobytes() for key, x in tensors.items() if not key.startswith(FILLER)} == {
            key: data[: len(data) * 5 // 7] for key, data in undisturbed.items()
        }
        assert verify(folder).ok
        assert sorted(path.name for path in folder.iterdir()) == ["journal", "recording.safetensors"]
    assert k > 1 or name in ("copy_file_range", "posix_fallocate")


CALLS = ("pwrite", "fsync", "replace", "ftruncate", "posix_fallocate", "copy_file_range", "unlink", "open")


def killed_in(call: int, folder: Path, *, reserve: bool) -> bool:
    """Lets a process end early, which is killed in the k-th of all calls; tells whether it came to that."""
    pid = os.fork()
    if pid == 0:
        count = [0]

        def counted(original: Any) -> Any:
            def called(*arguments: Any, **options: Any) -> Any:
                count[0] += 1
                if count[0] == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **options)

            return called

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            end_early(folder, reserve=reserve)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="has other calls")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@pytest.mark.parametrize("room", ["enough", "too little", "not reserved"])
def test_an_early_end_that_is_killed_in_any_call_is_repeated(
    tmp_path: Path, undisturbed: dict[str, bytes], room: str
) -> None:
    begun, reserve = begin(tmp_path / "begun"), room != "not reserved"
    if room == "too little":
        make_old(begun, OLD, slack_bytes=300)
    for call in range(1, 400):
        folder = tmp_path / str(call)
        shutil.copytree(tmp_path / "begun", folder)
        was_killed = killed_in(call, folder, reserve=reserve)
        if not RunPaths(folder).recording.exists():
            assert was_killed
            assert num_good_rows(RunPaths(folder).partial) >= 4
            other = tmp_path / f"{call} gone on from"
            shutil.copytree(folder, other)
            go_on(other)
            assert finished(other)[0] == undisturbed
            end_early(folder, reserve=reserve)
        tensors = load_file(RunPaths(folder).recording)
        assert {key: x.tobytes() for key, x in tensors.items() if not key.startswith(FILLER)} == {
            key: data[: len(data) * 5 // 7] for key, data in undisturbed.items()
        }
        assert verify(folder).ok
        if not was_killed:
            break
    assert call > 20


def test_a_reason_may_be_long(tmp_path: Path) -> None:
    reason = "\U0001f600" * MAX_REASON_CHARS
    writer = make_writer(tmp_path)
    write_rows(writer, range(3))
    writer.finish(EarlyEnd(2, 6, reason))
    ended = EarlyEnd.of(read_layout(RunPaths(tmp_path).recording).flannel)
    assert ended == EarlyEnd(2, 6, reason)
    entry = Journal(RunPaths(tmp_path).journal).read()
    assert entry is not None
    assert (entry.state, entry.ended_step) == ("done", 2)
    assert reason.startswith(entry.message)


def test_the_space_of_rows_that_never_came_is_given_back(tmp_path: Path) -> None:
    schema = make_schema(num_tokens=4000, max_steps=200)
    writer = make_writer(tmp_path, schema=schema)
    write_rows(writer, range(3))
    reserved_bytes = RunPaths(tmp_path).partial.stat().st_blocks * 512
    writer.finish(EarlyEnd(2, 200, "enough"))
    path = RunPaths(tmp_path).recording
    layout = read_layout(path)
    assert layout.used_bytes < layout.total_bytes // 20
    assert verify(path).ok
    if sys.platform == "linux" and reserved_bytes > layout.total_bytes // 2:
        assert path.stat().st_blocks * 512 < reserved_bytes // 10


def test_a_file_that_tells_of_an_end_that_cannot_be_is_damaged(tmp_path: Path) -> None:
    begin(tmp_path)
    end_early(tmp_path)
    path = RunPaths(tmp_path).recording
    layout = read_layout(path)
    said = {key: value for key, value in layout.flannel.items() if key != CHECKSUM_KEY}
    said["ended"] = {"step": 5, "planned_steps": 6, "reason": "enough"}
    planned = make_schema().specs()
    wrong = plan_layout(
        layout.tensors, metadata=dump_metadata(said), min_header_bytes=len(layout.header), reserved=planned
    )
    path.write_bytes(wrong.header + path.read_bytes()[len(layout.header) :])
    assert "it ended early at step 5 of 6 (enough) and so should have 6" in verify(path).damage[0]
