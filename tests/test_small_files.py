"""Only regular files are read, and small ones whole; a pipe or a device never makes a reader wait."""

import os
from pathlib import Path

import pytest

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.launch.jobs import Jobs
from flannel_pl.launch.status import read_status
from flannel_pl.recording.experiment_record import read_record
from flannel_pl.recording.formats.safetensors.layout import read_layout
from flannel_pl.recording.gathering.notes import GatherNotes
from flannel_pl.recording.reader import open_recording
from flannel_pl.recording.writing.journal import Journal
from flannel_pl.recording.writing.lock import Lock
from flannel_pl.small_files import read_small


def make(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**40)
    else:
        path.symlink_to(f"/dev/{kind}")


KINDS = pytest.mark.parametrize("kind", ["pipe", "folder", "huge", "zero", "null"])


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert read_small(tmp_path / "file") == b"abc"
    assert read_small(tmp_path / "file", max_bytes=3) == b"abc"
    with pytest.raises(OSError, match="it has 3 bytes, expected 2 at most"):
        read_small(tmp_path / "file", max_bytes=2)
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "nothing")


@KINDS
def test_anything_else_is_refused(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "file", kind)
    with pytest.raises(OSError, match=r"it is no regular file|Is a directory|expected 67108864 at most"):
        read_small(tmp_path / "file")


@KINDS
def test_whoever_reads_a_folder_says_what_is_wrong(tmp_path: Path, kind: str) -> None:
    paths, words = (
        ExperimentPaths(tmp_path, tmp_path.name),
        "no regular|directory|at most|not start with|Expecting",
    )
    for path in (paths.record, paths.growing_notes, paths.run(0).journal, paths.gathered):
        path.parent.mkdir(exist_ok=True)
        make(path, kind)
    assert ExperimentPaths.find(tmp_path) == paths
    for read in (read_record, lambda paths: read_status(paths.folder)):
        with pytest.raises(RunError, match=rf"^Cannot read .*experiment\.json: .*({words}).* Bring back"):
            read(paths)
    with pytest.raises(RunError, match=rf"^Cannot read .*journal: .*({words})"):
        Journal(paths.run(0).journal).read()
    with pytest.raises(RunError, match=rf"^Cannot read .*gathered\.json: .*({words})"):
        GatherNotes.read(paths.growing_notes)
    with pytest.raises(RunError, match=words):
        read_layout(paths.gathered)
    if kind != "folder":
        with pytest.raises(RunError, match=words):
            open_recording(paths.gathered)


@KINDS
def test_what_jobs_and_an_index_say_is_not_waited_for_either(tmp_path: Path, kind: str) -> None:
    paths = ExperimentPaths(tmp_path, tmp_path.name)
    for path in (paths.older_jobs, paths.jobs):
        make(path, kind)
        assert Jobs.read(paths) is None
    if kind != "folder":
        make(paths.index, kind)
        with pytest.raises(RunError, match="is no readable index"):
            open_recording(paths.index)


def test_the_holder_of_a_lock_is_read_within_bounds(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"[" * 2**20)
    first = Lock(tmp_path / "lock", what="it")
    first.acquire()
    os.truncate(tmp_path / "lock", 2**40)
    with pytest.raises(UserError, match="it is in use by another process"):
        Lock(tmp_path / "lock", what="it").acquire()
    first.release()
