"""Whichever call to the disk fails: a clear error, nothing unrecorded, and the same command finishes the job.

A whole `fit` of one run is repeated, and each time another one of its calls fails. By default every k-th call
fails once, with one of the two errors; with FLANNEL_PL_FAULTS=all, with both.
"""

import errno
import os
import queue
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.checking.verify import num_good_rows, verify
from flannel_pl.recording.writing.journal import Journal
from tests.conftest import SmallData
from tests.faulty_disk import CALLS, SHORT, Attempt, Fault, Host, names_in, tensors_of

NUM_HOSTS = 2
ERRORS = (errno.EIO, errno.ENOSPC)
ALL = os.environ.get("FLANNEL_PL_FAULTS") == "all"
GOES_ON = ("copy", "reserve")
"""Calls without which it goes too: unless the disk is full, they may answer what they like."""

NEXT_STEP = r"Check the disk and its permissions, then start again\.|Free some space, "

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to name open files")


def words(data: SmallData, output_dir: Path) -> list[str]:
    """A fit of three steps with a checkpoint after each."""
    command = ["fit", *data.arguments, "--trainer.max_steps", "3", "--launch.checkpoint_every", "1"]
    command += ["--launch.threads_per_run", "1", "--trainer.log_every_n_steps", "1"]
    command += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    return [*command, "--experiment.name", "faulty", "--experiment.output_dir", str(output_dir)]


class Lab:
    """Repeats one experiment with faults, and knows what an undisturbed one gives.

    Args:
        data: What is trained on.
        folder: Where.
        hosts: What runs commands.
        begun: The folder that every attempt finds; None = none.
        more: Further arguments of the command.
    """

    def __init__(
        self,
        data: SmallData,
        folder: Path,
        hosts: Sequence[Host],
        *,
        begun: Path | None = None,
        more: Sequence[str] = (),
    ) -> None:
        self.data, self.folder, self.begun, self.more = data, folder, begun, more
        self.idle: queue.Queue[Host] = queue.Queue()
        places = [folder / f"calm {i}" for i in range(len(hosts))]
        for place in places:
            self.prepare(place)
        # Counted below the same folder as where calls fail: what is above is made and synced by all together.
        calm = [host.run(self.words(place), below=place) for host, place in zip(hosts, places, strict=True)]
        assert [attempt.code for attempt in calm] == [0] * len(hosts), calm[0].stderr
        self.num_calls = calm[-1].num_calls
        self.tensors = tensors_of(folder / "calm 0" / "faulty")
        self.names = names_in(folder / "calm 0" / "faulty")
        for host in hosts:
            self.idle.put(host)

    def words(self, output_dir: Path) -> list[str]:
        return [*words(self.data, output_dir), *self.more]

    def prepare(self, output_dir: Path) -> None:
        if self.begun is not None:
            shutil.copytree(self.begun, output_dir)

    def faults(self, call: str) -> Iterator[Fault]:
        for k in range(1, self.num_calls.get(call, 0) + 1):
            for error in ERRORS if ALL else (ERRORS[k % 2],):
                yield Fault(call, k, error)

    def check_all(self, faults: Iterable[Fault]) -> None:
        with ThreadPoolExecutor(NUM_HOSTS) as pool:
            wrong = [f"{fault}: {what}" for fault, what in pool.map(self._check, faults) if what]
        assert not wrong, "\n".join(wrong)

    def _check(self, fault: Fault) -> tuple[Fault, str | None]:
        host, output_dir = self.idle.get(), self.folder / str(fault)
        try:
            self.check(host, fault, output_dir)
        except AssertionError as error:
            return fault, str(error)
        finally:
            shutil.rmtree(output_dir, ignore_errors=True)
            self.idle.put(host)
        return fault, None

    def check(self, host: Host, fault: Fault, output_dir: Path) -> None:
        paths = ExperimentPaths(output_dir / "faulty", "faulty")
        self.prepare(output_dir)
        first = host.run(self.words(output_dir), below=output_dir, fault=fault)
        assert first.struck is not None, "it was to be the k-th call, but there were fewer"
        if fault.error == SHORT or (fault.error == errno.EIO and fault.call in GOES_ON):
            assert first.code == 0, first.stderr
        elif first.struck == str(paths.events):  # costs an event and no training, see events.py
            assert first.code == 0, first.stderr
            assert f"Cannot write {paths.events}" in first.stderr
        else:
            assert_complaint(first, fault, folder=output_dir)
        assert_truthful(paths)
        again = host.run(self.words(output_dir), below=output_dir)
        assert again.code == 0, f"after {first.struck} failed, again gives {again.code}:\n{again.stderr}"
        tensors = tensors_of(paths.folder)
        different = [key for key in self.tensors if tensors[key] != self.tensors[key]]
        assert not different, f"after {first.struck} failed, differs in {different}"
        names = names_in(paths.folder)
        assert names == self.names, f"after {first.struck} failed: {set(names) ^ set(self.names)}"
        assert verify(paths.folder).ok


def assert_complaint(attempt: Attempt, fault: Fault, *, folder: Path) -> None:
    """It ended with exit code 1 and a line that says which file, why, and what to do."""
    said = f"{attempt.struck} failed, exit code {attempt.code}, and it said:\n{attempt.stderr}"
    assert attempt.code == 1, said
    assert "Traceback" not in attempt.stderr, said
    lines = [line for line in attempt.stderr.splitlines() if line.startswith("flannel-pl: error: ")]
    assert lines == attempt.stderr.splitlines()[-1:], said
    reason = re.escape(os.strerror(fault.error))
    match = re.search(rf"Cannot write ({re.escape(str(folder))}\S*): {reason}\. .*({NEXT_STEP})", lines[0])
    assert match, said
    named, struck = Path(match[1]), Path(attempt.struck or "")
    # A file may be named without the ending that it still carried, or the token of whoever wants a lock, and
    # for the folder that holds it.
    unfinished = re.fullmatch(rf"{re.escape(named.name)}(\.[0-9a-f]{{16}})?\.(partial|kept)", struck.name)
    assert struck in (named, named.parent) or unfinished, said
    assert "flannel-writer" not in attempt.threads, said


def assert_truthful(paths: ExperimentPaths) -> None:
    """What carries a final name is whole, and the journal claims no row that is not there."""
    run = paths.run(0)
    for path in (run.recording, paths.gathered):
        assert not path.exists() or verify(path).ok
    entry = Journal(run.journal).read()
    if run.recording.exists() or entry is None:
        return
    there = num_good_rows(run.partial)
    assert entry.rows_committed <= entry.rows_written <= there, f"{there} rows, but the journal says {entry}"
    assert entry.state != "done"


@pytest.fixture(scope="module")
def hosts(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    folder = tmp_path_factory.mktemp("hosts")
    with ExitStack() as stack:
        plan = words(small_data, folder / "plan")
        yield [stack.enter_context(Host(folder / f"host {i}", plan)) for i in range(NUM_HOSTS)]


@pytest.fixture(scope="module", params=["new", "begun", "ends early"])
def lab(
    request: pytest.FixtureRequest,
    small_data: SmallData,
    hosts: list[Host],
    tmp_path_factory: pytest.TempPathFactory,
) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    if request.param == "new":
        return Lab(small_data, folder / "runs", hosts)
    if request.param == "ends early":
        ends = ["--trainer.max_steps", "9", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"]
        return Lab(small_data, folder / "runs", hosts, more=ends)
    begun, k = folder / "begun 1", 1
    while len(list(begun.glob("*/run_0/checkpoint*.ckpt"))) != 2:
        begun, k = folder / f"begun {k}", k + 1
        hosts[0].run(words(small_data, begun), below=begun, fault=Fault("rename", k, errno.EIO))
    return Lab(small_data, folder / "runs", hosts, begun=begun)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_every_call_that_fails(lab: Lab, call: str) -> None:
    faults = list(lab.faults(call))
    print(f"{call}: {lab.num_calls.get(call, 0)} calls, {len(faults)} faults")
    lab.check_all(faults)


@pytest.mark.slow
def test_a_pwrite_that_writes_less_than_asked(lab: Lab) -> None:
    lab.check_all(Fault("pwrite", k, SHORT) for k in range(1, lab.num_calls["pwrite"] + 1, 3))


def test_some_calls_that_fail(lab: Lab) -> None:
    every = [fault for call in CALLS for fault in lab.faults(call)]
    lab.check_all([*every[::40], Fault("pwrite", lab.num_calls["pwrite"] // 2, SHORT)])
