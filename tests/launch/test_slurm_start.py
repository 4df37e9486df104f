"""What is submitted, refused and taken back, on a real Slurm; in most tests its jobs stay in the queue."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flannel_pl.__main__ import main
from flannel_pl.launch.launchers.slurm.submitting import array_parts
from flannel_pl.launch.tasks import JOB_VARIABLE
from tests.conftest import SmallData
from tests.launch.slurm_cluster import cluster, jobs_of, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

LATER = ["--launch.detach", "true", "--launch.slurm.extra", "[--begin=now+1hour]"]
MAX_ARRAY_SIZE = 11


@pytest.fixture(scope="module")
def slurm_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with cluster(tmp_path_factory.mktemp("slurm"), f"MaxArraySize={MAX_ARRAY_SIZE}") as config:
        yield config


@pytest.fixture(autouse=True)
def empty_queue(slurm_config: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SLURM_CONF", str(slurm_config))
    yield
    for variable in ("SLURM_ARRAY_JOB_ID", JOB_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    ask("scancel", f"--user={os.getuid()}")


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def words(data: SmallData, folder: Path, *more: str, launcher: str = "slurm") -> list[str]:
    settings = ["--trainer.max_steps", "3", "--launch.threads_per_run", "1", "--experiment.seeds", "1..3"]
    settings += ["--experiment.output_dir", str(folder), "--experiment.name", "jobs"]
    settings += ["--launch.launcher", launcher, "--launch.slurm.gpus_per_run", "0"]
    return ["fit", *data.arguments, *settings, *LATER, *more]


def submission(folder: Path) -> dict[str, Any]:
    return jobs_of(folder / "jobs")


def throttle(job: str) -> str | None:
    shown = ask("scontrol", "--oneliner", "show", "job", job).split()
    return next((word.partition("=")[2] for word in shown if word.startswith("ArrayTaskThrottle=")), None)


def put_before(monkeypatch: pytest.MonkeyPatch, folder: Path, command: str, lines: str) -> None:
    """Has a shell script stand before a command of Slurm."""
    folder.mkdir()
    (folder / command).write_text(f"#!/bin/sh\n{lines}\n")
    (folder / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("kept", [False, True], ids=["new folder", "other runs there"])
def test_a_refused_start_leaves_nothing(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: bool
) -> None:
    folder = tmp_path / "new" / "runs"
    if kept:
        assert main(words(small_data, folder, "--experiment.run", "1", launcher="local")) == 0
    before = sorted(folder.rglob("*"))
    assert main(words(small_data, folder, "--launch.slurm.partition", "nowhere")) == 2
    assert "sbatch refused the job: invalid partition" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
    assert (tmp_path / "new").exists() == kept
    assert main(words(small_data, folder, "--model.learning_rate", "0.5")) == (2 if kept else 0)


def test_a_refused_gather_takes_its_array_back(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = 'case "$*" in *--dependency*) echo "sbatch: error: no more jobs" >&2; exit 1;; esac'
    put_before(monkeypatch, tmp_path / "bin", "sbatch", f'{refuse}; exec {shutil.which("sbatch")} "$@"')
    assert main(words(small_data, tmp_path / "runs")) == 2
    assert "sbatch refused the job: no more jobs" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert ask("squeue", "--noheader") == ""


def test_a_command_with_other_settings_is_refused_and_another_limit_obeyed(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(small_data, tmp_path, "--launch.slurm.array_limit", "2")) == 0
    jobs = submission(tmp_path)
    for other, said in (
        (["--launch.max_retries", "5"], "launch.max_retries: 2 there, 5 now"),
        (["--launch.checkpoint_every", "7"], "launch.checkpoint_every: 100 there, 7 now"),
        (["--launch.slurm.time", "1-0"], 'launch.slurm.time: null there, "1-0" now'),
        (["--launch.slurm.extra", "[--nice]"], 'launch.slurm.extra: ["--begin=now+1hour"] there'),
        (["--trainer.log_every_n_steps", "1"], "trainer.log_every_n_steps: "),
        (["--experiment.gather", "none"], 'experiment.gather: "single" there, "none" now'),
    ):
        assert main(words(small_data, tmp_path, "--launch.slurm.array_limit", "1", *other)) == 2
        complaint = capsys.readouterr().err
        assert f"the jobs of {tmp_path / 'jobs'} are with Slurm with other settings ({said}" in complaint
        assert f"scancel {jobs['array_job']} {jobs['gather_job']}, and start this command again" in complaint
    assert throttle(jobs["array_job"]) == "2"
    assert submission(tmp_path) == jobs

    assert main(words(small_data, tmp_path, "--launch.slurm.array_limit", "1")) == 0
    assert "launch.slurm.array_limit of the jobs is 1 now, it was 2" in capsys.readouterr().out
    assert throttle(jobs["array_job"]) == "1"
    assert main(words(small_data, tmp_path)) == 0
    assert "array_limit of the jobs is null now, it was 1" in capsys.readouterr().out
    assert throttle(jobs["array_job"]) is None
    assert main(words(small_data, tmp_path)) == 0
    said = capsys.readouterr().out
    assert "the jobs are with Slurm already" in said
    assert "array_limit" not in said


def test_jobs_of_an_older_version_are_found(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(small_data, tmp_path)) == 0
    jobs = submission(tmp_path)
    old = {key: jobs[key] for key in ("array_job", "gather_job", "runs")}
    (tmp_path / "jobs" / "jobs.json").unlink()
    (tmp_path / "jobs" / "slurm.json").write_text(json.dumps(old))
    assert main(words(small_data, tmp_path, "--launch.max_retries", "5")) == 0
    assert "the jobs are with Slurm already" in capsys.readouterr().out
    assert main(words(small_data, tmp_path, launcher="local")) == 2
    assert f"is with Slurm, as {jobs['array_job']} {jobs['gather_job']}" in capsys.readouterr().err


LOCAL = {"all runs": [], "one run": ["--experiment.run", "1"], "its own config": ["--config"]}


@pytest.mark.parametrize("verb", ["fit", "plan"])
@pytest.mark.parametrize("more", LOCAL.values(), ids=LOCAL)
def test_nothing_is_trained_here_beside_jobs(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], verb: str
) -> None:
    assert main(words(small_data, tmp_path)) == 0
    jobs = submission(tmp_path)
    local = words(small_data, tmp_path, *more, launcher="local")
    if more == ["--config"]:
        local = ["fit", "--config", str(tmp_path / "jobs" / "run_1" / "config.yaml")]
    assert main([verb, *local[1:]]) == 2
    complaint = capsys.readouterr().err
    assert f"{tmp_path / 'jobs'} is with Slurm, as {jobs['array_job']} {jobs['gather_job']}" in complaint
    assert f"scancel {jobs['array_job']} {jobs['gather_job']}, and start" in complaint
    assert not list(tmp_path.rglob("journal"))
    ask("scancel", jobs["array_job"], jobs["gather_job"])
    assert main([verb, *local[1:]]) == 0


@pytest.mark.parametrize("variable", [JOB_VARIABLE, "SLURM_ARRAY_JOB_ID"])
def test_a_task_of_the_jobs_trains_beside_them(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    assert main(words(small_data, tmp_path)) == 0
    jobs = submission(tmp_path)
    value = {JOB_VARIABLE: str(tmp_path / "jobs"), "SLURM_ARRAY_JOB_ID": jobs["array_job"]}[variable]
    monkeypatch.setenv(variable, value)
    assert main(["fit", "--config", str(tmp_path / "jobs" / "run_1" / "config.yaml")]) == 0
    assert (tmp_path / "jobs" / "run_1" / "recording.safetensors").exists()


def test_jobs_that_are_not_noted_are_found_all_the_same(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(small_data, tmp_path)) == 0
    jobs = submission(tmp_path)
    (tmp_path / "jobs" / "jobs.json").unlink()
    assert main(words(small_data, tmp_path)) == 2
    complaint = capsys.readouterr().err
    assert "has jobs with Slurm that its jobs.json does not tell of" in complaint
    assert f"end them with: scancel {jobs['array_job']} {jobs['gather_job']}, and" in complaint
    other = tmp_path / "elsewhere"
    assert main(words(small_data, other)) == 0, "jobs of another folder are no obstacle"


def test_more_runs_than_an_array_job_may_have_tasks(
    small_data: SmallData, weird_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = ["--experiment.seeds", "1..25"]
    assert main(words(small_data, weird_tmp_path, *many)) == 0
    jobs = submission(weird_tmp_path)
    numbers = [array["job"] for array in jobs["arrays"]]
    assert [array["first_run"] for array in jobs["arrays"]] == [0, 10, 20]
    said = capsys.readouterr().out
    assert f"array job {' and '.join(numbers)} of 25 runs, then job {jobs['gather_job']} to gather" in said
    assert f"scancel {' '.join([*numbers, jobs['gather_job']])}" in said
    queue = ask("squeue", "--noheader", "--array", "--format=%F %K").splitlines()
    tasks = {(number, str(task)) for number in numbers for task in range(10)}
    tasks -= {(numbers[2], str(task)) for task in range(5, 10)}
    assert {tuple(line.split()) for line in queue} == tasks | {(jobs["gather_job"], "N/A")}
    gather = ask("scontrol", "show", "job", jobs["gather_job"])
    assert all(f"afterany:{number}_*" in gather for number in numbers)
    assert main(words(small_data, weird_tmp_path, *many)) == 0
    assert "the jobs are with Slurm already" in capsys.readouterr().out
    # Whether arrays wait for each other is settled when they are submitted.
    assert main(words(small_data, weird_tmp_path, *many, "--launch.slurm.array_limit", "2")) == 2
    assert "launch.slurm.array_limit: null there, 2 now" in capsys.readouterr().err


def test_a_limit_holds_for_all_arrays_together(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = ["--experiment.seeds", "1..25"]
    assert main(words(small_data, tmp_path, *many, "--launch.slurm.array_limit", "2")) == 0
    numbers = [array["job"] for array in submission(tmp_path)["arrays"]]
    for number, waits_for in zip(numbers[1:], numbers, strict=False):
        assert f"afterany:{waits_for}_*" in ask("scontrol", "show", "job", number)
    assert main(words(small_data, tmp_path, *many, "--launch.slurm.array_limit", "3")) == 0
    assert [throttle(number) for number in numbers] == ["3", "3", "3"]


@pytest.mark.slow
def test_runs_of_split_arrays_are_trained_and_gathered(
    small_data: SmallData, weird_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = ["--experiment.seeds", "1..12", "--launch.detach", "false", "--launch.slurm.extra", "[]"]
    for run in (*range(9), 10):  # which leaves one of the first array, and one of the second
        alone = ["--experiment.run", str(run)]
        assert main(words(small_data, weird_tmp_path, *now, *alone, launcher="local")) == 0
    assert main(words(small_data, weird_tmp_path, *now)) == 0
    jobs = submission(weird_tmp_path)
    assert [array["first_run"] for array in jobs["arrays"]] == [0, 10]
    assert jobs["runs"] == [9, 11]
    said = capsys.readouterr().out
    assert f"array job {jobs['arrays'][0]['job']} and {jobs['arrays'][1]['job']} of 2 runs" in said
    assert str(weird_tmp_path / "jobs" / "jobs.safetensors") in said
    for run in (9, 11):
        assert "max_steps=3` reached" in (weird_tmp_path / "jobs" / f"run_{run}" / "log.txt").read_text()
    assert main(["verify", str(weird_tmp_path / "jobs")]) == 0


def controller_pid(config: Path) -> int:
    return int((config.parent / "slurmctld.pid").read_text())


@pytest.mark.slow
def test_a_job_that_slurm_took_without_a_word_is_taken_back(
    small_data: SmallData,
    tmp_path: Path,
    slurm_config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """sbatch gives up on a controller that hangs; once it goes on, it takes the job all the same."""
    pid = controller_pid(slurm_config)
    hang = f'kill -STOP {pid}; {shutil.which("sbatch")} "$@"; code=$?; kill -CONT {pid}; sleep 1; exit $code'
    put_before(monkeypatch, tmp_path / "bin", "sbatch", hang)
    assert main(words(small_data, tmp_path / "runs")) == 1
    assert "Slurm does not answer: Batch job submission failed: Socket timed out" in capsys.readouterr().err
    assert ask("squeue", "--noheader") == ""
    assert "CANCELLED" in ask("squeue", "--noheader", "--states=all", "--format=%T", "--name=jobs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_controller_that_hangs_is_nobodys_mistake(
    small_data: SmallData, tmp_path: Path, slurm_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(small_data, tmp_path / "jobs there")) == 0
    pid = controller_pid(slurm_config)
    os.kill(pid, signal.SIGSTOP)
    try:
        for command in (
            words(small_data, tmp_path / "new"),
            words(small_data, tmp_path / "jobs there"),
            words(small_data, tmp_path / "jobs there", launcher="local"),
        ):
            assert main(command) == 1
            assert (
                "Slurm does not answer: Socket timed out on send/recv operation. Start this command again"
                in (capsys.readouterr().err)
            )
        assert not (tmp_path / "new").exists()
    finally:
        os.kill(pid, signal.SIGCONT)


RUNS = {
    "all fit": (range(11), 11, [(0, 11, "run_%a")]),
    "few of many": ([3, 1005], 1001, [(0, 1, "run_%a"), (1000, 1, "run_1%3a")]),
    "one too many": (range(1002), 1001, [(0, 1000, "run_%a"), (1000, 2, "run_1%3a")]),
    "tens of thousands": ([9, 12345, 12399], 1001, [(0, 1, "run_%a"), (12000, 2, "run_12%3a")]),
    "larger arrays": (
        range(80_000),
        75_001,
        [(n * 10_000, 10_000, f"run_{n or ''}%{'4' * (n > 0)}a") for n in range(8)],
    ),
    "one task each": (range(3), 2, [(0, 1, "run_0"), (1, 1, "run_1"), (2, 1, "run_2")]),
}


@pytest.mark.parametrize(("runs", "max_tasks", "parts"), RUNS.values(), ids=RUNS)
def test_how_runs_are_spread_over_arrays(
    runs: Any, max_tasks: int, parts: list[tuple[int, int, str]]
) -> None:
    found = array_parts(list(runs), max_tasks=max_tasks)
    assert [(part.first_run, len(part.runs), part.folder) for part in found] == parts
    assert [run for part in found for run in part.runs] == list(runs)
    assert all(0 <= run - part.first_run < max_tasks for part in found for run in part.runs)
