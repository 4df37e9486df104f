"""More files than the system lets a process have open, and files that cannot be reached at the moment."""

import errno
import os
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flannel_pl.__main__ import main
from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.formats import opening
from flannel_pl.recording.formats.opening import Descriptor
from flannel_pl.recording.gathering.gather import gather
from flannel_pl.recording.reader import open_recording
from tests.recording.recording_samples import bits, make_experiment

NUM_RUNS = 40


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> ExperimentPaths:
    paths = make_experiment(tmp_path_factory.mktemp("many") / "many", num_runs=NUM_RUNS, gather="index")
    gather(paths.folder)
    return paths


@pytest.fixture
def few_allowed() -> Iterator[int]:
    """Lets this process have 15 files more open than it has now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    there = max(int(name.name) for name in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (there + 16, hard))
    yield 15
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_allowed")
def test_more_runs_than_files_may_be_open(many: ExperimentPaths, tmp_path: Path) -> None:
    with open_recording(many.folder) as recording:
        assert len(recording) == NUM_RUNS
        for _ in range(2):
            steps = [run.recorded_steps[:].tolist() for run in recording]
            assert steps == [list(range(7))] * NUM_RUNS
    assert verify(many.folder).ok
    for words in (["info", str(many.index)], ["compare", str(many.folder), str(many.folder)]):
        assert main(words) == 0
    assert main(["gather", str(many.folder), "--mode", "single"]) == 0
    many.gathered.unlink()


@pytest.mark.usefixtures("few_allowed")
def test_several_threads_read_what_one_would(many: ExperimentPaths) -> None:
    with open_recording(many.folder) as recording:
        expected = [bits(run.embeddings[:]) for run in recording]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                found = pool.map(lambda index: bits(recording.run(index).embeddings[:]), range(NUM_RUNS))
                assert list(found) == expected


def test_only_some_files_stay_open(many: ExperimentPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_OPEN", 3)
    before = len(list(Path("/dev/fd").iterdir()))
    with open_recording(many.folder) as recording:
        for run in recording:
            assert len(run.losses_f32[:]) == 7
            assert len(list(Path("/dev/fd").iterdir())) <= before + 3
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_a_closed_recording_is_closed(many: ExperimentPaths) -> None:
    recording = open_recording(many.folder)
    tensor = recording.run(0).embeddings
    recording.close()
    with pytest.raises(ValueError, match=r"recording.safetensors is closed"):
        tensor[0]


def test_what_is_read_stays_open_until_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"content")
    monkeypatch.setattr(opening, "MAX_OPEN", 0)
    descriptor, inside, closed = Descriptor(tmp_path / "a"), threading.Event(), threading.Event()

    def read() -> bytes:
        with descriptor.opened() as fd:
            inside.set()
            assert closed.wait(10)
            return os.pread(fd, 7, 0)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        assert inside.wait(10)
        descriptor.close()
        closed.set()
        assert reading.result() == b"content"
    assert not opening._open


def test_another_file_under_the_same_name_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"content")
    descriptor = Descriptor(tmp_path / "a")
    assert descriptor.read(100, offset=3) == b"tent"
    (tmp_path / "b").write_bytes(b"another")
    (tmp_path / "b").replace(tmp_path / "a")
    assert descriptor.read(100, offset=3) == b"tent"  # it is still open
    opening._close_idle(keep=0)
    with pytest.raises(
        RunError, match=r"a is another file than the one that was opened, or was written to. Open it"
    ):
        descriptor.read(1, offset=0)
    descriptor.close()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(RunError, match="it is no regular file"):
        open_recording(tmp_path / "a.safetensors")


ADVICE = {
    errno.EMFILE: r"Too many open files\. Let the process have more files open \(ulimit -n\), then",
    errno.ENFILE: r"Too many open files in system\. Let the process have more files open",
    errno.EACCES: r"Permission denied\. Change its permissions, then try again\.",
    errno.ENOENT: r"No such file or directory\. Bring it back, or mount the disk that it is on\.",
    errno.EIO: r"Input/output error\. Check the disk that it is on, then try again\.",
    errno.ESTALE: r"Stale file handle\. Check the disk that it is on, then try again\.",
    errno.ENOMEM: r"Cannot allocate memory\. Check the disk that it is on, then try again\.",
    errno.ETIMEDOUT: r"Connection timed out\. Check the disk that it is on, then try again\.",
}


@pytest.mark.parametrize("code", ADVICE, ids=lambda code: errno.errorcode[code])
def test_what_cannot_be_reached_is_not_to_be_thrown_away(
    many: ExperimentPaths, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises((RunError, UserError), match=ADVICE[code]) as refused:
            open_recording(many.run(0).recording)
    for word in ("record", "elete", "away"):
        assert word not in str(refused.value).replace(str(many.folder), "").replace("recording.", "")


def test_a_disk_that_fails_while_it_is_read_is_named(
    many: ExperimentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_recording(many.run(0).recording) as recording:
        for name in ("preadv", "pread"):
            monkeypatch.delattr(os, name)

        def refuse(fd: int, num_bytes: int) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        assert recording.run(0).recorded_steps[:].tolist() == list(range(7))
        monkeypatch.setattr(os, "read", refuse)
        with pytest.raises(
            RunError, match=r"Cannot read run_0_embeddings of .*: Input/output error. Check the disk"
        ):
            recording.run(0).embeddings[0]


@pytest.mark.parametrize(
    ("allowed", "most"), [(16, 4), (10**6, NUM_RUNS), (resource.RLIM_INFINITY, NUM_RUNS)]
)
def test_of_the_files_that_are_allowed_it_takes_only_a_part(
    many: ExperimentPaths, monkeypatch: pytest.MonkeyPatch, allowed: int, most: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (allowed, allowed))
    with open_recording(many.folder) as recording:
        for run in recording:
            run.recorded_steps[:]
        assert most <= len(opening._open) <= most + 2, "besides the extras and the index"
