"""Every state that a power cut may leave: resumed by the same command, it ends in the same bits.

A library that is preloaded (`noted.c`) notes what the processes of a real experiment do to its files:
launcher, two runs, gathering, which drops the runs' own files. From that, for every sync and every name that
is given, the states are built in which only what was synced is there (`states.py`): names as their folders
were synced, or all at once; files as long as they were, or with zeros for what was lost.

That it can fail is tested too: with the syncs of rows left out, which stand before the journal says that rows
are safe, there are states in which it says so and they are not.

FLANNEL_PL_CRASH_STATES says how many states are tried, spread over all moments; by default 90.
"""

import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from flannel_pl.errors import RunError
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.recording.checking.verify import num_good_rows, verify
from flannel_pl.recording.writing.journal import Journal
from tests.conftest import SmallData
from tests.crash.states import Note, State, read_notes, states
from tests.faulty_disk import Host, names_in, tensors_of

NUM_STATES = int(os.environ.get("FLANNEL_PL_CRASH_STATES", 90))
NUM_HOSTS = 2
NAME = "crashed"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="preloads a library and asks /proc for names"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc"),
]


def words(data: SmallData, output_dir: Path) -> list[str]:
    """A fit of two runs of three steps, with a checkpoint after each; their own files go once gathered."""
    command = ["fit", *data.arguments, "--trainer.max_steps", "3", "--launch.checkpoint_every", "1"]
    command += ["--launch.threads_per_run", "1", "--trainer.log_every_n_steps", "1"]
    command += ["--trainer.devices", "1", "--experiment.keep_shards", "false", "--experiment.seeds", "1..2"]
    command += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    return [*command, "--experiment.name", NAME, "--experiment.output_dir", str(output_dir)]


@pytest.fixture(scope="module")
def noted(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Note]]:
    """The folder of an undisturbed experiment, and what was done there."""
    folder = tmp_path_factory.mktemp("noted")
    library, root, log = folder / "noted.so", folder / "runs", folder / "log"
    source = Path(__file__).with_name("noted.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    root.mkdir()
    environment = {"LD_PRELOAD": str(library), "NOTED_FOLDER": str(root), "NOTED_LOG": str(log)}
    command = [sys.executable, "-m", "flannel_pl", *words(small_data, root)]
    subprocess.run(command, env=os.environ | environment, check=True, cwd=folder)
    return root, read_notes(log)


def claims(folder: Path) -> Iterator[str]:
    """Yields what is said to be there, in a state, and is not."""
    paths = ExperimentPaths(folder / NAME, NAME)
    for index in range(2):
        run = paths.run(index)
        if run.recording.exists() and not verify(run.recording).ok:
            yield f"{run.recording} is not complete"
        try:
            entry = Journal(run.journal).read()
        except RunError:
            continue  # both slots torn: nothing is claimed
        if entry is not None and run.partial.exists():
            there = num_good_rows(run.partial)
            if entry.rows_committed > there:
                yield f"{there} rows of run {index}, but its journal says {entry.rows_committed}"
    if paths.gathered.exists() and not verify(paths.gathered).ok:
        yield f"{paths.gathered} is not complete"


def test_every_state_is_resumed_to_the_same_bits(
    small_data: SmallData, noted: tuple[Path, list[Note]], tmp_path: Path
) -> None:
    root, notes = noted
    expected, names = tensors_of(root / NAME), names_in(root / NAME)
    every = list(states(notes, root=root))
    chosen = [every[number * len(every) // NUM_STATES] for number in range(min(NUM_STATES, len(every)))]
    print(f"{len(notes)} notes, {len(every)} states, {len(chosen)} of them tried")
    idle: queue.Queue[Host] = queue.Queue()

    def check(numbered: tuple[int, State]) -> list[str]:
        number, state = numbered
        folder, host = tmp_path / str(number), idle.get()
        state.write(folder)
        try:
            wrong = list(claims(folder))
            attempt = host.run(words(small_data, folder), below=folder)
            if attempt.code != 0:
                return [f"{state.name}: exit code {attempt.code}: {attempt.stderr[-500:]}", *wrong]
            there = tensors_of(folder / NAME)
            wrong += [f"differs in {key}" for key in expected if there.get(key) != expected[key]]
            if left := set(names_in(folder / NAME)) ^ set(names):
                wrong.append(f"files: {sorted(left)}")
            if not verify(folder / NAME).ok:
                wrong.append("verify is not satisfied")
            return [f"{state.name}: {what}" for what in wrong]
        finally:
            idle.put(host)
            shutil.rmtree(folder, ignore_errors=True)

    with ExitStack() as stack:
        for number in range(NUM_HOSTS):
            plan = words(small_data, tmp_path / "plan")
            idle.put(stack.enter_context(Host(tmp_path / f"host {number}", plan, one_by_one=True)))
        with ThreadPoolExecutor(NUM_HOSTS) as pool:
            wrong = [what for found in pool.map(check, enumerate(chosen)) for what in found]
    assert not wrong, "\n".join(wrong)


def test_without_the_sync_of_rows_the_journal_would_claim_too_much(
    noted: tuple[Path, list[Note]], tmp_path: Path
) -> None:
    root, notes = noted
    found: list[str] = []
    for number, state in enumerate(states(notes, root=root, deaf_to="recording.partial")):
        state.write(tmp_path / str(number))
        found += claims(tmp_path / str(number))
        shutil.rmtree(tmp_path / str(number))
    assert any("but its journal says" in what for what in found)
