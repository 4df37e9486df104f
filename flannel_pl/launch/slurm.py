"""Hands an experiment to Slurm: an array job with a task for every run, and a job after it that gathers.

A task is a plain `flannel-pl fit --config run_i/config.yaml`, run by `slurm_task.sh`, which starts it again
when it fails and puts it back into the queue before a time limit. Which jobs these are is noted in
`slurm.json`, so that the same command finds them again instead of submitting anything twice.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import Experiment, ExperimentPaths, Run, Slot
from flannel_pl.recording.disk import write_file
from flannel_pl.recording.record import ExperimentRecord
from flannel_pl.small_files import read_small

TASK_SCRIPT = Path(__file__).with_name("slurm_task.sh")

WARNING_S = 120
"""Seconds before the time limit at which Slurm warns a run; a checkpoint takes far less."""

SHORTEST_S = 300
"""Shortest time limit: Slurm may warn a minute early, and a run has to get somewhere before that."""

QUERY_TIMEOUT_S = 60.0

_TIME = r"(?:(?P<days>\d+)-(?P<day_hours>\d+)(?::(?P<day_minutes>\d+))?(?::(?P<day_seconds>\d+))?|"
_TIME += r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)|(?P<only_minutes>\d+)(?::(?P<and_seconds>\d+))?)"
_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


@dataclass(frozen=True)
class Submission:
    """The jobs that an experiment was last handed to Slurm as."""

    array_job: str
    """Number of the array job; its task numbers are those of the runs."""

    gather_job: str | None
    """Number of the job that gathers; None if nothing is to be gathered."""

    runs: list[int]
    """Runs that have a task."""

    @classmethod
    def read(cls, paths: ExperimentPaths) -> "Submission | None":
        """Returns what `slurm.json` says; None if nothing was submitted, or nothing readable is there."""
        try:
            content = json.loads(read_small(paths.slurm))
            gather_job = content["gather_job"]
            runs = [int(run) for run in content["runs"]]
            return cls(str(content["array_job"]), None if gather_job is None else str(gather_job), runs)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, paths: ExperimentPaths) -> None:
        """Writes `slurm.json`.

        Raises:
            RunError: If the disk fails.
        """
        write_file(paths.slurm, json.dumps(asdict(self)).encode() + b"\n")

    @property
    def jobs(self) -> list[str]:
        """Numbers of the jobs, as `scancel` wants them."""
        return [job for job in (self.array_job, self.gather_job) if job is not None]


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a task or job."""

    state: str
    """E.g. PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT."""

    reason: str
    """Why it is pending, e.g. Resources; else without meaning."""

    @property
    def is_active(self) -> bool:
        """Whether it is still going to do something."""
        return self.state not in {
            *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
            *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
        }


def slurm_slots(
    config: Mapping[str, Any], *, folder: Path, num_runs: int, record: ExperimentRecord | None
) -> tuple[Slot, ...]:
    """Returns the places that runs get on a cluster: as many as may be trained at the same time.

    Args:
        config: The experiment's config.
        folder: The experiment's folder.
        num_runs: Runs that are to be trained.
        record: What the folder's `experiment.json` says, whose number of threads `auto` then means.

    Raises:
        UserError: If a key asks for what a task of one run cannot have.
    """
    launch, trainer, slurm = config["launch"], config["trainer"], config["launch"]["slurm"]
    for key, value in (
        ("trainer.devices", trainer["devices"]),
        ("launch.devices", launch["devices"]),
        ("launch.runs_per_device", launch["runs_per_device"]),
    ):
        if value not in ("auto", 1):
            raise UserError(
                f"{key} is {value}, but with launch.launcher slurm every run has a device of its own; how "
                "many are trained at the same time is launch.slurm.array_limit"
            )
    for option in slurm["extra"]:
        if option.startswith(("-M", "--cluster")):
            raise UserError(f"launch.slurm.extra has {option}; start fit on a host of that cluster instead")
    if slurm["array_limit"] is not None and slurm["array_limit"] < 1:
        raise UserError(f"launch.slurm.array_limit is {slurm['array_limit']}, expected at least 1, or null")
    _check_time(slurm["time"])
    if "\\" in str(folder):
        raise UserError(f"{folder} has a backslash, which sbatch does not take; rename the folder")
    accelerator = {"gpu": "cuda", "auto": "cuda" if slurm["gpus_per_run"] else "cpu"}.get(
        trainer["accelerator"], trainer["accelerator"]
    )
    if accelerator not in ("cuda", "cpu"):
        raise UserError(
            f"trainer.accelerator is {accelerator}, expected gpu, cpu or auto with launch.launcher slurm"
        )
    threads = launch["threads_per_run"]
    if threads == "auto":
        # Runs of one thread train most steps per core; beside a GPU the second one serves the recorder.
        recorded = None if record is None else record.threads_per_run
        threads = recorded or (1 if accelerator == "cpu" else 2)
    elif threads < 1:
        raise UserError(f"launch.threads_per_run is {threads}, expected at least 1 or auto")
    places = min(num_runs, slurm["array_limit"] or num_runs)
    return (Slot(accelerator, None, int(threads)),) * places


def _check_time(text: str | None) -> None:
    if text is None:
        return
    match = re.fullmatch(_TIME, text)
    if match is None:
        raise UserError(
            f"launch.slurm.time is {text!r}, expected minutes, hours:minutes:seconds or days-hours, e.g. "
            '"04:00:00"'
        )
    groups = match.groupdict().items()
    if sum(int(value) * _SECONDS[name.split("_")[-1]] for name, value in groups if value) < SHORTEST_S:
        raise UserError(
            f"launch.slurm.time is {text!r}, expected 5 minutes or more: a run is warned {WARNING_S} s "
            "before the limit, or still earlier, and would get nowhere"
        )


def submit(experiment: Experiment, runs: Sequence[Run], slot: Slot, *, gathers: bool) -> Submission:
    """Submits an array job with a task for each run, and a job that gathers once all of them have ended.

    Only one process at a time may do so for an experiment.

    Args:
        experiment: What the runs belong to; the runs' config files are written.
        runs: The runs to train.
        slot: What each of them gets.
        gathers: Whether the second job is wanted.

    Raises:
        UserError: If Slurm refuses a job.
        RunError: If the disk fails. Whatever happens, jobs that were submitted before it are cancelled.
    """
    config, paths = experiment.config, experiment.paths
    slurm, name = config["launch"]["slurm"], paths.name
    common = ["--requeue", "--open-mode=append", f"--signal=B:USR1@{WARNING_S}", "--ntasks=1"]
    common += [f"--partition={slurm['partition']}"] * (slurm["partition"] is not None)
    common += [f"--time={slurm['time']}"] * (slurm["time"] is not None)
    numbers = _ranges([run.index for run in runs])
    limit = "" if slurm["array_limit"] is None else f"%{slurm['array_limit']}"
    array = [f"--job-name={name}", f"--array={numbers}{limit}", f"--cpus-per-task={slot.threads}"]
    array += ["--gres=gpu:1"] * (slurm["gpus_per_run"] == 1 and slot.accelerator == "cuda")
    array += [f"--output={_literal(paths.folder)}/run_%a/{paths.run(0).log.name}"]
    fit = ["bash", "-c", 'exec "$0" -m flannel_pl fit --config "$1/run_$SLURM_ARRAY_TASK_ID/config.yaml"']
    retries = str(config["launch"]["max_retries"])
    array_job = _sbatch(
        [*common, *array, *slurm["extra"]], [retries, *fit, sys.executable, str(paths.folder)]
    )
    submission = Submission(array_job, None, [run.index for run in runs])
    try:
        submission.write(paths)
        if gathers:
            after = [f"--job-name={name}-gather", f"--dependency=afterany:{array_job}"]
            after += [f"--output={_literal(paths.gather_log)}"]
            after += [option for option in slurm["extra"] if not option.startswith(("--gres", "--gpus"))]
            gather = [sys.executable, "-m", "flannel_pl", "gather", str(paths.folder)]
            submission = replace(submission, gather_job=_sbatch([*common, *after], ["0", *gather]))
            submission.write(paths)
    except BaseException:
        # Jobs that nobody knows of would train behind the back of the next attempt.
        subprocess.run(["scancel", *submission.jobs], check=False, env=_environment())
        paths.slurm.unlink(missing_ok=True)
        raise
    return submission


def find_submission(paths: ExperimentPaths) -> Submission | None:
    """Returns the jobs that an experiment was handed to Slurm as, if they are still going to do something.

    Raises:
        RunError: If Slurm does not answer.
    """
    submission = Submission.read(paths)
    if submission is None:
        return None
    states = job_states(submission.jobs)
    return submission if any(state.is_active for state in states.values()) else None


def check_slurm() -> None:
    """Refuses to go on where there is no Slurm.

    Raises:
        UserError: If its commands are not there.
    """
    for command in ("sbatch", "squeue"):
        if shutil.which(command) is None:
            raise UserError(
                f"launch.launcher is slurm, but there is no {command} here; start it on a host of the "
                "cluster, or leave launch.launcher at local"
            )


def job_states(jobs: Sequence[str]) -> dict[str, JobState]:
    """Asks Slurm for the state of jobs.

    Args:
        jobs: Numbers of jobs.

    Returns:
        Number of a job, or of a task such as 12_3, -> its state. Without those that Slurm has forgotten, some
        minutes after they have ended.

    Raises:
        RunError: If Slurm does not answer.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(jobs)}"]
    try:
        answer = subprocess.run(
            [*command, "--format=%i|%T|%r"],
            capture_output=True,
            text=True,
            check=False,
            timeout=QUERY_TIMEOUT_S,
            env=_environment(),
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"Slurm has not answered within {QUERY_TIMEOUT_S:.0f} s. Start this command again later."
        ) from error
    if answer.returncode != 0:
        if "Invalid job id" in answer.stderr:
            return {}
        raise RunError(f"Slurm does not answer: {_one_line(answer.stderr)}. Start this command again later.")
    rows = [line.split("|", 2) for line in answer.stdout.splitlines() if line.count("|") >= 2]
    return {job: JobState(state, reason) for job, state, reason in rows}


def _sbatch(options: Sequence[str], task: Sequence[str]) -> str:
    """Submits a job that runs `slurm_task.sh` with the words of `task`; returns its number."""
    command = ["sbatch", "--parsable", *options, str(TASK_SCRIPT), *task]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    if answer.returncode != 0:
        raise UserError(
            f"sbatch refused the job: {_one_line(answer.stderr)}. It was asked for {' '.join(options)}; see "
            "launch.slurm, and `scontrol show config` for the cluster's limits"
        )
    # A site's own lines may stand before it; behind it, in a federation, the cluster's name.
    numbers = re.findall(r"^(\d+)(?:;\S+)?$", answer.stdout, re.MULTILINE)
    if not numbers:
        raise RunError(
            f"sbatch has taken a job but did not say its number: {_one_line(answer.stdout)}. Look for it "
            "with squeue, and cancel it before you start this command again."
        )
    return str(numbers[-1])


def _environment() -> dict[str, str]:
    """Returns what Slurm's commands may see of our environment.

    Not which job or task we are ourselves, which a job would take for its own, nor what a user is used to
    have squeue leave out.
    """
    ours = ("SLURM_ARRAY_", "SLURM_RESTART_COUNT", "SLURM_JOB_ID", "SQUEUE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _ranges(numbers: Sequence[int]) -> str:
    """Returns increasing numbers as sbatch writes them, e.g. 0-4,7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _literal(path: Path) -> str:
    """Returns a path in which sbatch sees no pattern."""
    return str(path).replace("%", "%%")


def _one_line(text: str) -> str:
    """Returns what a command of Slurm complained of, without the prefixes."""
    lines = [re.sub(r"^\w+: (?:error: )?", "", line.strip()) for line in text.splitlines() if line.strip()]
    return "; ".join(lines) or "it says nothing"
