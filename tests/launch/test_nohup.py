"""Under nohup and in the background of a script: what a closed terminal and Ctrl-C send is ignored."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.launch.launchers.slurm import TASK_SCRIPT
from flannel_pl.recording.writing.journal import Journal
from tests.conftest import SmallData
from tests.processes import alive

MAX_STEPS = 200

IN_THE_BACKGROUND = ["sh", "-c", 'nohup "$@" & echo $!; wait $!', "sh"]
"""Ignores SIGHUP because of nohup, and SIGINT because a shell without job control sees to that."""


def arguments(data: SmallData, folder: Path, *, num_runs: int, steps: int = MAX_STEPS) -> list[str]:
    words = ["fit", *data.arguments, "--experiment.output_dir", str(folder)]
    words += ["--experiment.seeds", f"1..{num_runs}", "--trainer.max_steps", str(steps)]
    return [*words, "--recorder.tensors", "[losses]", "--trainer.enable_progress_bar", "false"]


def journals_of(folder: Path, *, num_runs: int) -> list[Journal]:
    return [Journal(folder / "flannel" / f"run_{index}" / "journal") for index in range(num_runs)]


@pytest.mark.slow
def test_under_nohup_the_terminals_signals_end_neither_launcher_nor_runs(
    small_data: SmallData, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "flannel_pl", *arguments(small_data, tmp_path, num_runs=2)]
    journals = journals_of(tmp_path, num_runs=2)
    with subprocess.Popen(
        [*IN_THE_BACKGROUND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        launcher = int(process.stdout.readline())
        wait_until(lambda: all(rows(journal) > 3 for journal in journals))
        pids = {entry.pid for journal in journals if (entry := journal.read()) is not None}
        if sys.platform == "linux":  # where a kernel without memory ends the runs, not their launcher
            scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (*pids, launcher)]
            assert scores[0] == scores[1] > scores[2]
        for pid in {launcher, *pids}:
            os.kill(pid, signal.SIGHUP)
            os.kill(pid, signal.SIGINT)
        assert all(rows(journal) <= MAX_STEPS for journal in journals), "they were still training"
        output = process.stdout.read()
    assert process.returncode == 0, output
    assert "stopped by" not in output
    with flannel_pl.open_recording(tmp_path / "flannel") as recording:
        assert [run.num_rows for run in recording] == [MAX_STEPS + 1] * 2


def fit_and_send(words: list[str], journals: list[Journal], numbers: list[signal.Signals]) -> int:
    """Runs `fit` in this process and sends it signals once every run has recorded some rows."""

    def send() -> None:
        wait_until(lambda: all(rows(journal) > 3 for journal in journals))
        for number in numbers:
            os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return main(words)
    finally:
        sender.join()


def test_a_single_run_goes_on_where_they_are_ignored(small_data: SmallData, tmp_path: Path) -> None:
    numbers = [signal.SIGHUP, signal.SIGINT, signal.SIGTERM]
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        words, journals = arguments(small_data, tmp_path, num_runs=1), journals_of(tmp_path, num_runs=1)
        assert fit_and_send(words, journals, numbers) == 0
        assert all(signal.getsignal(number) == signal.SIG_IGN for number in numbers)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    entry = journals[0].read()
    assert entry is not None
    assert (entry.state, entry.rows_written) == ("done", MAX_STEPS + 1)


@pytest.mark.parametrize("num_runs", [1, 2])
def test_a_closed_terminal_ends_all_others_in_order(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str], num_runs: int
) -> None:
    words = arguments(small_data, tmp_path, num_runs=num_runs, steps=100_000)
    journals = journals_of(tmp_path, num_runs=num_runs)
    assert fit_and_send(words, journals, [signal.SIGHUP]) == 128 + signal.SIGHUP
    assert "stopped by SIGHUP; nothing is lost, go on with: flannel-pl fit" in capsys.readouterr().err
    for journal in journals:
        entry = journal.read()
        assert entry is not None
        assert entry.state == "stopped"
        assert 3 < entry.rows_committed == entry.rows_written


@pytest.mark.slow
def test_runs_are_stopped_in_order_where_sigterm_is_ignored(small_data: SmallData, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "flannel_pl", *arguments(small_data, tmp_path, num_runs=2, steps=100_000)]
    journals = journals_of(tmp_path, num_runs=2)
    with subprocess.Popen(
        ["sh", "-c", 'trap "" TERM; exec "$@"', "sh", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        wait_until(lambda: all(rows(journal) > 3 for journal in journals))
        entries = [entry for journal in journals if (entry := journal.read()) is not None]
        for pid in (process.pid, *(entry.pid for entry in entries)):
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)
        assert all(alive(entry.pid) for entry in entries)
        process.send_signal(signal.SIGHUP)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGHUP, output
    ends = [entry.state for journal in journals if (entry := journal.read()) is not None]
    assert ends == ["stopped", "stopped"]


def test_what_a_slurm_task_starts_does_not_ignore_sigint() -> None:
    code = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    command = ["bash", str(TASK_SCRIPT), "0", sys.executable, "-c", code]
    assert subprocess.run(command, env={**os.environ, "SLURM_JOB_ID": "1"}, check=False).returncode == 0


def rows(journal: Journal) -> int:
    entry = journal.read()
    return 0 if entry is None else entry.rows_written


def wait_until(condition: Callable[[], object], *, timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited too long"
        time.sleep(0.02)
