"""A run that nobody starts again has failed, whatever its process came to say."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ResolvedExperiment
from flannel_pl.launch.folder import find_beginning
from flannel_pl.launch.giving_up import describe_exit, give_up, main, told_to_script
from flannel_pl.launch.jobs import Jobs
from flannel_pl.launch.launchers.slurm import TASK_SCRIPT
from flannel_pl.launch.status import read_status
from flannel_pl.recording.writing.journal import Journal
from flannel_pl.recording.writing.lock import Lock
from tests.launch.status_samples import finish, make_experiment, write_journal


def task(
    experiment: ResolvedExperiment, run: int, script: str, *, retries: int = 0
) -> subprocess.CompletedProcess[str]:
    """Runs the script of a Slurm task around a shell command that says which run it is, as a task's does."""
    paths = experiment.paths.run(run)
    paths.folder.mkdir(exist_ok=True)
    tell = 'printf \'%s\\0\' "$0" "$1" >"$FLANNEL_PL_TELL"; '
    command = [
        "bash",
        str(TASK_SCRIPT),
        str(retries),
        "bash",
        "-c",
        tell + script,
        sys.executable,
        str(paths.folder),
    ]
    with paths.log.open("a") as log:
        return subprocess.run(
            command, env={**os.environ, "SLURM_JOB_ID": "5"}, stdout=log, stderr=log, text=True, check=False
        )


ENDS = {
    "killed": ("kill -KILL $$", 137, "killed by SIGKILL (by hand, or because memory ran out)"),
    "wrong usage": (
        "echo 'flannel-pl: error: no such thing' >&2; exit 2",
        2,
        "exit code 2: flannel-pl: error: no such",
    ),
    "an error": ("echo 'flannel-pl: error: broken' >&2; exit 1", 1, "exit code 1: flannel-pl: error: broken"),
    "a crash": ("kill -ABRT $$", 134, "killed by SIGABRT"),
}


@pytest.mark.parametrize("begun", [False, True], ids=["no journal", "running"])
@pytest.mark.parametrize(("script", "code", "cause"), ENDS.values(), ids=ENDS)
def test_the_script_of_a_task_says_that_its_run_has_failed(
    weird_tmp_path: Path, script: str, code: int, cause: str, begun: bool
) -> None:
    experiment = make_experiment(weird_tmp_path / "exp", 2)
    finish(experiment, 0)
    if begun:
        write_journal(experiment, 1)
    assert task(experiment, 1, script).returncode == code
    status = read_status(weird_tmp_path / "exp")
    assert [run.state for run in status.runs] == ["done", "failed"]
    assert status.runs[1].message.startswith(cause)
    assert (status.runs[1].attempt, status.runs[1].rows_written) == (1, 301 if begun else 0)
    assert status.ended
    assert not (weird_tmp_path / "exp" / "run_1" / "lock").exists()


def test_only_the_last_attempt_gives_up(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "exp", 1)
    write_journal(experiment, 0)
    seen = f"{sys.executable} -m flannel_pl status {tmp_path}/exp >>{tmp_path}/seen"
    assert task(experiment, 0, f"{seen}; kill -KILL $$", retries=2).returncode == 137
    assert (tmp_path / "seen").read_text().count("running") >= 3
    run = read_status(tmp_path / "exp").runs[0]
    assert (run.state, run.attempt) == ("failed", 3)


@pytest.mark.parametrize("code", [0, 129, 130, 143])
def test_a_run_that_was_asked_to_stop_has_not_failed(tmp_path: Path, code: int) -> None:
    experiment = make_experiment(tmp_path / "exp", 1)
    write_journal(experiment, 0, state="stopped", message="SIGTERM")
    assert task(experiment, 0, f"exit {code}").returncode == code
    assert read_status(tmp_path / "exp").runs[0].state == "stopped"


def test_a_task_that_is_cancelled_and_killed_has_not_failed(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "exp", 1)
    write_journal(experiment, 0)
    assert (
        task(experiment, 0, "trap '' TERM; kill -TERM $PPID; sleep 0.3; kill -KILL $$", retries=1).returncode
        == 137
    )
    assert read_status(tmp_path / "exp").runs[0].state == "running"


def test_a_command_that_trains_no_run_is_given_up_without_a_word(tmp_path: Path) -> None:
    command = ["bash", str(TASK_SCRIPT), "0", "bash", "-c", "exit 3"]
    environment = {**os.environ, "SLURM_JOB_ID": "5", "TMPDIR": str(tmp_path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "", "")
    assert not list(tmp_path.iterdir())


def test_what_a_run_said_of_its_last_attempt_stays(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "exp", 3)
    run = experiment.runs[0]
    write_journal(experiment, 0, state="failed", message="OSError: disk", attempt=2)
    give_up(experiment.paths, experiment.config, run, "exit code 1", attempt=2)
    assert read_status(tmp_path / "exp").runs[0].message == "OSError: disk"
    give_up(experiment.paths, experiment.config, run, "exit code 2", attempt=3)
    status = read_status(tmp_path / "exp").runs[0]
    assert (status.state, status.message, status.attempt) == ("failed", "exit code 2", 3)
    finish(experiment, 1)
    give_up(experiment.paths, experiment.config, experiment.runs[1], "exit code 1", attempt=1)
    assert read_status(tmp_path / "exp").runs[1].state == "done"
    experiment.paths.run(2).folder.mkdir()
    experiment.paths.run(2).journal.write_bytes(b"?" * 8192)
    give_up(experiment.paths, experiment.config, experiment.runs[2], "exit code 1", attempt=1)
    assert read_status(tmp_path / "exp").runs[2].state == "unknown"


def test_a_run_that_another_process_trains_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flannel_pl.launch.giving_up.LOCK_WAIT_S", 0.0)
    experiment = make_experiment(tmp_path / "exp", 1)
    write_journal(experiment, 0)
    lock = Lock(experiment.paths.run(0).lock, what="run 0")
    lock.acquire()
    try:
        main([str(experiment.paths.run(0).folder), "137", "1", "7"])
        main([str(experiment.paths.folder)])
        assert read_status(tmp_path / "exp").runs[0].state == "running"
    finally:
        lock.release()
    main([str(experiment.paths.folder)])
    assert read_status(tmp_path / "exp").runs[0].state == "failed"


def test_when_all_jobs_have_ended_what_says_it_is_running_was_cut_off(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "exp", 5)
    finish(experiment, 0)
    write_journal(experiment, 1, updated_s=time.time() - 500)
    write_journal(experiment, 2, state="stopped")
    write_journal(experiment, 3, state="failed", message="OSError")
    main([str(experiment.paths.folder)])
    status = read_status(tmp_path / "exp")
    assert [run.state for run in status.runs] == ["done", "failed", "stopped", "failed", "waiting"]
    assert "ended without a word" in status.runs[1].message


@pytest.mark.parametrize(
    ("error", "left", "state"),
    [
        (RunError("disk"), "1", "waiting"),
        (ZeroDivisionError(), "2", "waiting"),
        (RunError("disk"), "0", "failed"),
        (RunError("disk"), None, "failed"),
        (UserError("wrong"), "1", "failed"),
    ],
)
def test_a_failed_run_with_attempts_left_waits_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, left: str | None, state: str
) -> None:
    if left is not None:
        monkeypatch.setenv("FLANNEL_PL_RETRIES_LEFT", left)
    monkeypatch.setenv("FLANNEL_PL_TELL", str(tmp_path / "tell"))
    experiment = make_experiment(tmp_path / "exp", 1)
    write_journal(experiment, 0, state="failed", message="disk")
    paths = experiment.paths.run(0)
    with pytest.raises(type(error)), told_to_script(paths):
        raise error
    entry: Any = Journal(paths.journal).read()
    assert (entry.state, entry.message) == (state, "disk")
    assert (tmp_path / "tell").read_bytes() == f"{sys.executable}\0{paths.folder}\0".encode()


def test_a_run_that_failed_before_its_first_row_has_not_begun(tmp_path: Path) -> None:
    """What was wrong may be its config, which can be changed as long as nothing is recorded."""
    experiment = make_experiment(tmp_path / "exp", 2)
    experiment.paths.run(0).folder.mkdir()
    give_up(experiment.paths, experiment.config, experiment.runs[0], "exit code 2", attempt=1)
    Jobs("slurm", {0: "12_0", 1: "12_1"}, None, {}, 0.0).write(experiment.paths)
    assert find_beginning(experiment.paths) is None
    write_journal(experiment, 0, state="failed", rows_written=1)
    assert find_beginning(experiment.paths) == experiment.paths.run(0).journal


def test_exits_in_words(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path / "exp", 1).paths.run(0)
    assert describe_exit(paths, -signal.SIGTERM, None) == "killed by SIGTERM"
    assert describe_exit(paths, 3, None) == "exit code 3: it printed nothing"
