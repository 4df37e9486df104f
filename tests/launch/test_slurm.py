"""Runs as jobs of a real Slurm with two nodes; where there is no Slurm, what is said about that."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.experiment import RunPaths
from flannel_pl.launch.events import read_events
from flannel_pl.launch.launchers.slurm.submitting import _told
from flannel_pl.recording.writing.journal import Journal, JournalEntry
from tests.conftest import SmallData
from tests.launch import slurm_hold
from tests.launch.slurm_cluster import cluster, jobs_of, why_not

WAIT_S = 120.0
SCRIPTS = Path(__file__).parents[2] / "launch"

with_slurm = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cluster(tmp_path_factory.mktemp("slurm")) as config, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(config))
        patch.setenv("SLURM_TIME_FORMAT", "%s")
        yield


def arguments(data: SmallData, folder: Path, *more: str, launcher: str = "slurm") -> list[str]:
    words = [*data.arguments, "--experiment.output_dir", str(folder), "--experiment.name", "jobs"]
    words += ["--launch.launcher", launcher, "--launch.slurm.gpus_per_run", "0"]
    return [*words, "--launch.threads_per_run", "1", "--launch.checkpoint_every", "50", *more]


def fit(data: SmallData, folder: Path, *more: str, launcher: str = "slurm") -> int:
    return main(["fit", *arguments(data, folder, *more, launcher=launcher)])


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"no {what} after {WAIT_S} s"
        time.sleep(0.1)


def journal(folder: Path, run: int) -> JournalEntry | None:
    path = RunPaths(folder / f"run_{run}").journal
    return Journal(path).read() if path.exists() else None


def rows(folder: Path, run: int) -> int:
    entry = journal(folder, run)
    return 0 if entry is None else entry.rows_written


def is_stopped(folder: Path, run: int) -> bool:
    entry = journal(folder, run)
    return entry is not None and entry.state == "stopped"


def contents(folder: Path) -> dict[str, bytes]:
    """Returns every row of every run of a gathered experiment."""
    with flannel_pl.open_recording(folder / "jobs.safetensors") as recording:
        return {
            f"{run.index}.{name}": run.tensor(name)[:].tobytes() for run in recording for name in run.names
        }


def ask_slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def release(task: str) -> None:
    """Lets a task that was put back into the queue start soon; Slurm makes it wait two minutes."""
    wait_for(
        lambda: "PENDING" in ask_slurm("squeue", "-h", "-r", "-j", task, "-o", "%T"), "task in the queue"
    )
    # A node takes a task that starts in the second in which it was ended for one that it is to end.
    time.sleep(2)
    ask_slurm("scontrol", "update", f"JobId={task}", "StartTime=now")


@pytest.fixture(scope="module")
def undisturbed(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("local")
    assert fit(small_data, folder, "--experiment.seeds", "1..3", *STEPS, launcher="local") == 0
    return contents(folder / "jobs")


STEPS = ["--trainer.max_steps", "300"]


@with_slurm
@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_the_jobs_give_the_bits_of_a_local_experiment(
    small_data: SmallData,
    weird_tmp_path: Path,
    undisturbed: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    limits = ["--experiment.seeds", "1..3", *STEPS, "--launch.slurm.array_limit", "2"]
    assert fit(small_data, weird_tmp_path, *limits) == 0
    folder = weird_tmp_path / "jobs"
    said = capsys.readouterr().out
    assert re.search(r"array job \d+ of 3 runs, then job \d+ to gather", said)
    assert "run 2: done" in said
    assert str(folder / "jobs.safetensors") in said
    assert contents(folder) == undisturbed
    events = read_events(folder / "events.jsonl")
    under_way, most = 0, 0
    for event in events:
        under_way += {"run_started": 1, "run_finished": -1}.get(event["event"], 0)
        most = max(most, under_way)
    assert most <= 2
    assert sorted(event["run"] for event in events if event["event"] == "run_finished") == [0, 1, 2]

    assert fit(small_data, weird_tmp_path, *limits) == 0
    assert "finished already" in capsys.readouterr().out


def end_the_showing(words: list[str], jobs: dict[str, Any]) -> None:
    """Ctrl-C while fit waits for its jobs ends fit, not the jobs."""
    command = [sys.executable, "-u", "-m", "flannel_pl", "fit", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        while line := waiting.stdout.readline():
            if "run 2: running" in line:
                break
        waiting.send_signal(signal.SIGINT)
        complaint = waiting.communicate(timeout=30)[1]
    assert waiting.returncode == 130
    assert f"the jobs go on; stop them with: scancel {jobs['array_job']} {jobs['gather_job']}" in complaint
    assert "Traceback" not in complaint
    assert ask_slurm("squeue", "--noheader", "--array").count(" R ") == 3


@with_slurm
@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_warned_run_a_cancelled_one_and_a_killed_one_lose_nothing(
    small_data: SmallData,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One experiment through everything that a cluster does to it."""
    hold = tmp_path / "hold"
    hold.touch()
    monkeypatch.setenv(slurm_hold.VARIABLE, str(hold))
    words = ["--experiment.seeds", "1..3", *STEPS, "--trainer.callbacks", "tests.launch.slurm_hold.Hold"]
    assert fit(small_data, tmp_path, *words, "--launch.detach", "true") == 0
    folder = tmp_path / "jobs"
    jobs = jobs_of(folder)
    said = capsys.readouterr().out
    assert f"scancel {jobs['array_job']} {jobs['gather_job']}" in said
    wait_for(lambda: all(rows(folder, run) == 1 + slurm_hold.STEP for run in (0, 1, 2)), "rows")
    end_the_showing(arguments(small_data, tmp_path, *words), jobs)

    # The warning before a time limit: Slurm sends it to the job's script alone.
    ask_slurm("scancel", "--signal=USR1", "--batch", f"{jobs['array_job']}_0")
    # The end of a process, by the kernel's hand.
    killed = journal(folder, 1)
    assert killed is not None
    os.kill(killed.pid, 9)
    ask_slurm("scancel", f"{jobs['array_job']}_2")
    wait_for(lambda: all(is_stopped(folder, run) for run in (0, 2)), "the end of runs 0 and 2")
    hold.unlink()
    release(f"{jobs['array_job']}_0")

    # The same command finds its jobs; all but the cancelled run get to their end.
    assert fit(small_data, tmp_path, *words) == 1
    assert jobs_of(folder) == jobs, "nothing was submitted twice"
    said = capsys.readouterr().out
    assert "its job ended as CANCELLED" in " ".join(said.split())
    assert "go on with: flannel-pl fit" in said
    assert "no finished recording of run 2 (1 of 3 runs)" in (folder / "gather.log").read_text()
    log = (folder / "run_0" / "log.txt").read_text()
    assert "stopped by SIGUSR1" in log
    assert "going on after step" in log
    for run in (0, 1):
        entry = journal(folder, run)
        assert entry is not None
        assert (entry.state, entry.attempt) == ("done", 2)
    assert RunPaths(folder / "run_2").checkpoints()[0][0] > slurm_hold.STEP

    assert fit(small_data, tmp_path, *words) == 0
    assert jobs_of(folder)["runs"] == [2]
    assert contents(folder) == undisturbed
    assert not list(folder.rglob("*.partial"))
    assert not list(folder.rglob("lock"))


@with_slurm
@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("script", ["slurm_array.sh", "slurm_node.sh"])
def test_the_scripts_for_sbatch_by_hand(
    script: str,
    small_data: SmallData,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The node's job has two tasks, which Lightning by itself would take for two devices of every run."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    words = arguments(small_data, tmp_path, "--experiment.seeds", "1..3", *STEPS, launcher="local")
    shape = ["--array=0-2"] if script == "slurm_array.sh" else ["--ntasks=2"]
    log = tmp_path / "job.%a.txt"
    sbatch = ["sbatch", "--wait", "--gres=none", f"--output={log}"]
    done = subprocess.run(
        [*sbatch, "--cpus-per-task=1", *shape, str(SCRIPTS / script), *words], timeout=WAIT_S, check=False
    )
    printed = "\n".join(path.read_text() for path in tmp_path.glob("job.*.txt"))
    assert done.returncode == 0, printed
    if script == "slurm_array.sh":
        gather = [*sbatch, str(SCRIPTS / "slurm_gather.sh"), str(tmp_path / "jobs")]
        assert subprocess.run(gather, timeout=WAIT_S, check=False).returncode == 0
    assert contents(tmp_path / "jobs") == undisturbed, printed


@with_slurm
@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("end", [["scancel"], ["scancel", "--batch", "--signal=TERM"]])
def test_a_cancelled_node_checkpoints_whomever_slurm_tells(
    end: list[str], small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some clusters signal every process of a job at once, others its script alone."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    hold = tmp_path / "hold"
    hold.touch()
    monkeypatch.setenv(slurm_hold.VARIABLE, str(hold))
    more = ["--experiment.seeds", "1..2", *STEPS, "--trainer.callbacks", "tests.launch.slurm_hold.Hold"]
    words = arguments(small_data, tmp_path, *more, "--launch.devices", "2", launcher="local")
    sbatch = ["sbatch", "--parsable", "--gres=none", f"--output={tmp_path / 'job.txt'}"]
    job = ask_slurm(*sbatch, str(SCRIPTS / "slurm_node.sh"), *words).strip()
    folder = tmp_path / "jobs"
    wait_for(lambda: all(rows(folder, run) == 1 + slurm_hold.STEP for run in (0, 1)), "rows")
    ask_slurm(*end, job)
    wait_for(lambda: all(is_stopped(folder, run) for run in (0, 1)), "the end of both runs")
    hold.unlink()
    wait_for(lambda: ask_slurm("squeue", "--noheader") == "", "end of the job")
    for run in (0, 1):
        entry = journal(folder, run)
        assert entry is not None
        assert entry.state == "stopped"
        assert RunPaths(folder / f"run_{run}").checkpoints()[0][0] > slurm_hold.STEP
    assert not list(folder.rglob("lock"))
    assert "nothing is lost, go on with: flannel-pl fit" in (tmp_path / "job.txt").read_text()


@with_slurm
@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("cause", ["killed", "wrong usage"])
def test_watching_ends_when_nobody_starts_the_runs_again(
    cause: str, small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody waits for the jobs, so it is they who have to say that they have given up."""
    words = ["--experiment.seeds", "1..2", *STEPS, "--launch.detach", "true", "--launch.max_retries", "1"]
    corpus = tmp_path / "corpus.txt"
    if cause == "killed":
        words += ["--trainer.callbacks", "tests.launch.slurm_hold.Killed"]
        said = "killed by SIGKILL"
    else:
        shutil.copy(small_data.corpus, corpus)
        words += ["--data.corpus_path", str(corpus), "--launch.slurm.extra", "[--begin=now+3]"]
        said = "exit code 2: flannel-pl: error: "
    assert fit(small_data, tmp_path, *words) == 0
    corpus.unlink(missing_ok=True)
    command = [sys.executable, "-m", "flannel_pl", "status", str(tmp_path / "jobs"), "--watch"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    assert "0 of 2 runs done, 2 failed" in shown
    for run in (0, 1):
        entry = journal(tmp_path / "jobs", run)
        assert entry is not None
        assert (entry.state, entry.attempt) == ("failed", 2 if cause == "killed" else 1)
        assert entry.message.startswith(said)


@with_slurm
@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_jobs_of_another_config_are_not_taken_for_ours(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = ["--launch.detach", "true", "--launch.slurm.extra", "[--begin=now+1hour]"]
    assert fit(small_data, tmp_path, *STEPS, *later, "--experiment.seeds", "1..2") == 0
    jobs = jobs_of(tmp_path / "jobs")
    assert fit(small_data, tmp_path, *STEPS, *later, "--experiment.seeds", "1..3") == 2
    said = capsys.readouterr().err
    assert "has jobs with Slurm that have another config; repeat what they were submitted with" in said
    assert f"scancel {jobs['array_job']} {jobs['gather_job']}" in said
    assert fit(small_data, tmp_path, *STEPS, *later, "--experiment.seeds", "1..2") == 0
    assert "the jobs are with Slurm already" in capsys.readouterr().out
    ask_slurm("scancel", jobs["array_job"], jobs["gather_job"])


@with_slurm
@pytest.mark.usefixtures("slurm")
def test_what_slurm_refuses_is_said_and_nothing_is_left_behind(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(small_data, tmp_path, *STEPS, "--launch.slurm.partition", "nowhere") == 2
    said = capsys.readouterr().err
    assert "sbatch refused the job: invalid partition specified: nowhere" in said
    assert "--partition=nowhere" in said
    assert "see launch.slurm" in said
    assert not (tmp_path / "jobs" / "jobs.json").exists()
    assert ask_slurm("squeue", "-h") == ""


def test_without_slurm_it_says_so(
    small_data: SmallData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fit(small_data, tmp_path, *STEPS) == 2
    assert (
        "launch.launcher is slurm, but there is no sbatch here; start it on a host" in capsys.readouterr().err
    )
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        (
            ["--trainer.devices", "4"],
            "trainer.devices is 4, but with launch.launcher slurm every run has a device",
        ),
        (["--launch.runs_per_device", "2"], "launch.runs_per_device is 2, but with launch.launcher slurm"),
        (["--launch.slurm.array_limit", "0"], "launch.slurm.array_limit is 0, expected at least 1, or null"),
        (
            ["--launch.slurm.time", "soon"],
            "launch.slurm.time is 'soon', expected minutes, hours:minutes:seconds",
        ),
        (["--launch.slurm.time", "1:30"], "launch.slurm.time is '1:30', expected 5 minutes or more"),
        (["--launch.slurm.extra", "[-Mother]"], "launch.slurm.extra has -Mother; start fit on a host of"),
        (["--experiment.name", "back\\slash"], "has a backslash, which sbatch does not take"),
        (["--trainer.accelerator", "mps"], "trainer.accelerator is mps, expected gpu, cpu or auto"),
    ],
)
def test_what_a_task_of_one_run_cannot_have(
    override: list[str],
    complaint: str,
    small_data: SmallData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", *arguments(small_data, tmp_path, *STEPS, *override)]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "jobs").exists()


def test_the_plan_tells_what_slurm_will_be_asked_for(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(small_data, tmp_path, *STEPS, "--experiment.seeds", "1..9")
    assert main(["plan", *words, "--launch.slurm.array_limit", "4"]) == 0
    assert "Slurm tasks with cpu x 4 runs side by side, 1 thread(s) each" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["90", "5:00", "04:00:00", "2-0", "1-12:30", "1-00:00:05"])
def test_time_limits_as_sbatch_reads_them(
    text: str, small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments(small_data, tmp_path, *STEPS, "--launch.slurm.time", text)]) == 0
    assert "Slurm" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["4h", "1:2:3:4", "x5", "1-"])
def test_other_time_limits_are_refused(
    text: str, small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments(small_data, tmp_path, *STEPS, "--launch.slurm.time", text)]) == 2
    assert f"launch.slurm.time is {text!r}, expected minutes" in capsys.readouterr().err


def test_a_state_that_slurm_may_still_leave_is_active() -> None:
    active = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "CONFIGURING")
    over = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "OUT_OF_MEMORY", "NODE_FAIL")
    assert all(_told(state, "").is_active for state in active)
    assert not any(_told(state, "").is_active for state in over)
