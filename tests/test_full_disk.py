"""A disk that is really full: a clear error, and with room made the same command finishes, bit for bit."""

import contextlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flannel_pl.experiment import ExperimentPaths, RunPaths
from flannel_pl.recording.checking.verify import verify
from flannel_pl.recording.writing.journal import SLOT_BYTES, Journal
from tests.conftest import SmallData
from tests.faulty_disk import Attempt, Host, names_in, tensors_of
from tests.mounting import mounted

PAGE_BYTES = 4096
DISK_BYTES = 8 * 2**20


class SmallDisk:
    """A file system of its own, a few MiB large, at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free

    def fill(self, *, leave_bytes: int = 0) -> None:
        fd = os.open(self._filler, os.O_RDWR | os.O_CREAT)
        with contextlib.suppress(OSError):  # somebody else was faster: then it is full, too
            size = os.fstat(fd).st_size
            if self.free_bytes > leave_bytes:
                os.posix_fallocate(fd, size, self.free_bytes - leave_bytes)
        os.close(fd)

    @contextlib.contextmanager
    def filled_up(self, *, when: Callable[[], object]) -> Iterator[None]:
        """Fills the disk as soon as `when` is true, and keeps it full until the block ends."""
        over = threading.Event()

        def work() -> None:
            while not over.wait(0.002):
                if when():
                    self.fill()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def make_room(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs"):
        yield SmallDisk(folder)


class Lab:
    """Runs one command on a disk of its own choice."""

    def __init__(self, data: SmallData, host: Host, folder: Path) -> None:
        self.data, self.host, self.folder = data, host, folder

    def words(self, output_dir: Path, options: list[str]) -> list[str]:
        words = ["fit", *self.data.arguments, "--launch.threads_per_run", "1"]
        words += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
        return [*words, *options, "--experiment.name", "full", "--experiment.output_dir", str(output_dir)]

    def run(self, output_dir: Path, options: list[str]) -> Attempt:
        return self.host.run(self.words(output_dir, options), below=output_dir)

    def calm(self, options: list[str]) -> Path:
        """Returns the folder of an undisturbed experiment."""
        attempt = self.run(self.folder, options)
        assert attempt.code == 0, attempt.stderr
        return self.folder / "full"

    def finish(self, disk: SmallDisk, options: list[str], *, like: Path) -> None:
        """Makes room and runs the same command again: it ends with the bits of an undisturbed experiment."""
        assert_nothing_unfinished_has_a_name(disk.folder / "full")
        disk.make_room()
        again = self.run(disk.folder, options)
        assert again.code == 0, again.stdout + again.stderr
        assert tensors_of(disk.folder / "full") == tensors_of(like)
        assert names_in(disk.folder / "full") == names_in(like)
        assert verify(disk.folder / "full").ok


@pytest.fixture(scope="module")
def host(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("full disk")
    plan = ["fit", *small_data.arguments, "--trainer.max_steps", "1", "--experiment.output_dir", str(folder)]
    with Host(folder / "host", plan) as host:
        yield host


@pytest.fixture
def lab(small_data: SmallData, host: Host, tmp_path: Path) -> Lab:
    return Lab(small_data, host, tmp_path / "calm")


def assert_nothing_unfinished_has_a_name(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        assert path.name == "live_dead_tokens.safetensors" or verify(path).ok


def assert_full(attempt: Attempt, file: str) -> None:
    """It ended with exit code 1, and its last line says which file did not fit and what to do."""
    said = f"exit code {attempt.code}:\n{attempt.stdout}{attempt.stderr}"
    assert attempt.code == 1, said
    assert "Traceback" not in attempt.stderr, said
    line = attempt.stderr.splitlines()[-1]
    reason = "No space left on device"
    assert re.search(rf"^flannel-pl: error: Cannot write \S*/{file}: {reason}\..* Free some space", line), (
        said
    )


def assert_journal_says_so(run: RunPaths) -> None:
    entry = Journal(run.journal).read()
    assert entry is not None
    assert (entry.state, "No space left" in entry.message) == ("failed", True)


def has_begun(run: RunPaths) -> bool:
    return run.journal.exists() and run.journal.stat().st_blocks * 512 == 2 * SLOT_BYTES


METRICS = ["--trainer.max_steps", "250", "--trainer.log_every_n_steps", "1", "--recorder.tensors", "[losses]"]
METRICS += ["--launch.checkpoint_every", "1000"]
CHECKPOINTS = ["--trainer.max_steps", "400", "--launch.checkpoint_every", "5", "--trainer.logger", "false"]


@pytest.mark.slow
def test_full_during_training(disk: SmallDisk, lab: Lab) -> None:
    options = [*CHECKPOINTS, "--recorder.tensors", "[losses]"]
    calm = lab.calm(options)
    run = ExperimentPaths(disk.folder / "full", "full").run(0)
    with disk.filled_up(when=run.checkpoints):
        attempt = lab.run(disk.folder, options)
    assert_full(attempt, r"checkpoint-\d+-\w+\.ckpt")
    assert_journal_says_so(run)
    lab.finish(disk, options, like=calm)


@pytest.mark.slow
def test_room_for_the_recording_but_not_for_a_checkpoint(disk: SmallDisk, lab: Lab) -> None:
    options = ["--trainer.max_steps", "4", "--launch.checkpoint_every", "2", "--recorder.tensors", "[losses]"]
    calm = lab.calm(options)
    disk.fill(leave_bytes=24 * PAGE_BYTES)
    assert_full(lab.run(disk.folder, options), r"checkpoint-2-\w+\.ckpt")
    lab.finish(disk, options, like=calm)


@pytest.mark.slow
@pytest.mark.parametrize("spare_pages", [2, -1])
def test_full_when_gathering(disk: SmallDisk, lab: Lab, spare_pages: int) -> None:
    options = ["--trainer.max_steps", "60", "--trainer.logger", "false"]
    calm, folder, free_bytes = lab.calm(options), disk.folder / "full", disk.free_bytes
    assert lab.run(disk.folder, options).code == 0
    used_bytes = free_bytes - disk.free_bytes - (folder / "full.safetensors").stat().st_blocks * 512
    shard_bytes = (folder / "run_0" / "recording.safetensors").stat().st_blocks * 512
    shutil.rmtree(folder)
    # After training there is room for the recording a second time and for a lock. What else gathering takes
    # is less than what a recording keeps free for its header, which is not copied.
    disk.fill(leave_bytes=used_bytes + shard_bytes + spare_pages * PAGE_BYTES)
    attempt = lab.run(disk.folder, options)
    if spare_pages > 0:
        assert attempt.code == 0, attempt.stderr
    else:
        assert attempt.code == 2
        assert re.search(r"Cannot gather into .*: need .*, have .* free. Free some space", attempt.stderr)
    assert (folder / "run_0" / "recording.safetensors").exists()
    lab.finish(disk, options, like=calm)


@pytest.mark.slow
def test_full_when_metrics_are_logged(disk: SmallDisk, lab: Lab) -> None:
    calm, run = lab.calm(METRICS), ExperimentPaths(disk.folder / "full", "full").run(0)
    with disk.filled_up(when=lambda: has_begun(run)):
        attempt = lab.run(disk.folder, METRICS)
    assert_full(attempt, r"run_0/metrics\.csv")
    assert_journal_says_so(run)
    lab.finish(disk, METRICS, like=calm)


@pytest.mark.slow
def test_full_when_a_logger_of_the_users_own_logs(disk: SmallDisk, lab: Lab) -> None:
    calm, run = lab.calm(METRICS), ExperimentPaths(disk.folder / "full", "full").run(0)
    options = [*METRICS, "--trainer.logger", "CSVLogger"]
    with disk.filled_up(when=lambda: has_begun(run)):
        attempt = lab.run(disk.folder, options)
    assert_full(attempt, r"run_0\S*")  # what fails in writing may not know its name
    assert_journal_says_so(run)
    disk.make_room()
    again = lab.run(disk.folder, options)
    assert again.code == 0, again.stderr
    assert tensors_of(disk.folder / "full") == tensors_of(calm)


@pytest.mark.slow
def test_several_runs_on_a_disk_that_becomes_full(disk: SmallDisk, lab: Lab) -> None:
    options = [*CHECKPOINTS, "--recorder.tensors", "[losses]", "--experiment.seeds", "1..2"]
    options += ["--launch.devices", "2", "--launch.max_retries", "0"]
    calm = lab.calm(options)
    runs = [ExperimentPaths(disk.folder / "full", "full").run(index) for index in range(2)]
    with disk.filled_up(when=lambda: all(run.checkpoints() for run in runs)):
        attempt = lab.run(disk.folder, options)
    assert attempt.code == 1, attempt.stdout + attempt.stderr
    assert "failed: 2 of 2 runs" in attempt.stdout
    assert "No space left on device" in attempt.stdout
    assert "go on with: flannel-pl fit" in attempt.stdout
    lab.finish(disk, options, like=calm)


def test_refused_if_the_recording_does_not_fit(disk: SmallDisk, lab: Lab) -> None:
    disk.fill(leave_bytes=PAGE_BYTES)
    attempt = lab.run(disk.folder, ["--trainer.max_steps", "60"])
    assert attempt.code == 2
    assert re.search(r"not enough free disk for \S+/full: need .*, have ", attempt.stderr)
    assert not (disk.folder / "full").exists()


def test_another_file_system_than_that_of_temporary_files(lab: Lab) -> None:
    shared_memory = Path("/dev/shm")
    if not os.access(shared_memory, os.W_OK):
        pytest.skip("needs /dev/shm, a file system that most systems have besides the one of /tmp")
    with tempfile.TemporaryDirectory(dir=shared_memory) as name:
        other = Path(name)
        if other.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
            pytest.skip("the folder for temporary files is on the file system of /dev/shm")
        options = ["--trainer.max_steps", "4", "--launch.checkpoint_every", "2"]
        calm = lab.calm(options)
        attempt = lab.run(other, options)
        assert attempt.code == 0, attempt.stderr
        assert tensors_of(other / "full") == tensors_of(calm)
        assert names_in(other / "full") == names_in(calm)
