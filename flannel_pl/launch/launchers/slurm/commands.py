"""Slurm's commands: what they are asked, what they answer, and whose fault it is if they fail.

A job that Slurm refuses is the user's mistake. A controller that is down, restarting or overloaded is not:
the same command works later.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from flannel_pl.errors import RunError, UserError

TIMEOUT_S = 120.0
"""Slurm's commands give up by themselves after 10 to 20 s, sbatch after some tries."""

DEFAULT_ARRAY_SIZE = 1001

# Slurm's own words, for those moments in which the controller answers the next question.
_NO_ANSWER = re.compile(
    r"Unable to contact slurm controller|connect failure|Socket timed out|Zero Bytes were transmitted|"
    r"Connection (refused|timed out|reset)|Unable to establish|configuration (source|file)|Unknown host|"
    r"standby mode|temporarily unable to accept|[Aa]uthentication|Unexpected message received",
)


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


def task_states(jobs: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Asks Slurm for the state of jobs.

    Args:
        jobs: Numbers of jobs.

    Returns:
        Number of a job, or of a task such as 12_3, -> its state, e.g. PENDING, and why it is pending (else
        without meaning). Without those that Slurm has forgotten, some minutes after they have ended.

    Raises:
        RunError: If Slurm does not answer.
    """
    which = ["--array", "--states=all", f"--jobs={','.join(jobs)}"]
    answer = _ask("squeue", "--noheader", *which, "--format=%i|%T|%r")
    if answer.returncode != 0:
        if "Invalid job id" in answer.stderr:
            return {}
        raise _no_answer(answer.stderr)
    rows = [line.split("|", 2) for line in answer.stdout.splitlines() if line.count("|") >= 2]
    return {job: (state, reason) for job, state, reason in rows}


def jobs_with_comment(comment: str) -> list[str]:
    """Returns the numbers of this user's jobs that have a comment and have not ended.

    Raises:
        RunError: If Slurm does not answer.
    """
    answer = _ask("squeue", "--noheader", f"--user={os.getuid()}", "--format=%F|%k")
    if answer.returncode != 0:
        raise _no_answer(answer.stderr)
    rows = [line.split("|", 1) for line in answer.stdout.splitlines()]
    return sorted({row[0] for row in rows if row[1:] == [comment]})


def max_array_size() -> int:
    """Returns how many tasks an array job may have; their numbers are below that.

    Raises:
        RunError: If Slurm does not answer.
    """
    answer = _ask("scontrol", "show", "config")
    if answer.returncode != 0:
        raise _no_answer(answer.stderr)
    limits = [r"^MaxArraySize\s*=\s*(\d+)", r"^SchedulerParameters\s*=.*\bmax_array_tasks=(\d+)"]
    found = [re.search(limit, answer.stdout, re.MULTILINE) for limit in limits]
    return max(1, min((int(match[1]) for match in found if match), default=DEFAULT_ARRAY_SIZE))


def sbatch(options: Sequence[str], script: str, arguments: Sequence[str]) -> str:
    """Submits a job and returns its number.

    Raises:
        UserError: If Slurm refuses it.
        RunError: If Slurm does not answer; it may have taken the job all the same.
    """
    answer = _ask("sbatch", "--parsable", *options, script, *arguments)
    if answer.returncode != 0:
        if _is_down(answer.stderr):
            raise _no_answer(answer.stderr)
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


def cancel(jobs: Sequence[str]) -> None:
    """Ends jobs; those that have ended already are no mistake.

    Raises:
        RunError: If Slurm does not answer.
    """
    answer = _ask("scancel", *jobs)
    if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
        raise _no_answer(answer.stderr)


def set_array_limit(array_job: str, limit: int | None) -> None:
    """Changes how many tasks of an array job may run at the same time; None = all.

    Raises:
        UserError: If Slurm refuses.
        RunError: If it does not answer.
    """
    answer = _ask("scontrol", "update", f"JobId={array_job}", f"ArrayTaskThrottle={limit or 0}")
    said = answer.stderr + answer.stdout
    if answer.returncode == 0 or "Invalid job id" in said or "already complet" in said:
        return
    if _is_down(said):
        raise _no_answer(said)
    raise UserError(f"Slurm does not change the array_limit of job {array_job}: {_one_line(said)}")


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of Slurm to its end, well or not."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=TIMEOUT_S,
            env=_environment(),
        )
    except subprocess.TimeoutExpired as error:
        raise _no_answer(f"{command[0]} took more than {TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise _no_answer(f"{command[0]} cannot be started, {error.strerror}") from error


def _is_down(said: str) -> bool:
    """Whether a command has failed because there was nobody to ask, and not for what it was asked."""
    return bool(_NO_ANSWER.search(said)) or _ask("scontrol", "ping").returncode != 0


def _no_answer(said: str) -> RunError:
    return RunError(f"Slurm does not answer: {_one_line(said)}. Start this command again later.")


def _environment() -> dict[str, str]:
    """Returns what Slurm's commands may see of our environment.

    Not which job or task we are ourselves, which a job would take for its own, nor what a user is used to
    have squeue leave out.
    """
    ours = ("SLURM_ARRAY_", "SLURM_RESTART_COUNT", "SLURM_JOB_ID", "SQUEUE_", "SCANCEL_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _one_line(text: str) -> str:
    """Returns what a command of Slurm complained of, without the prefixes."""
    lines = [
        re.sub(r"^\w+(?:: (?:error|fatal)| error)?: ", "", line.strip())
        for line in text.splitlines()
        if line.strip()
    ]
    return "; ".join(lines) or "it says nothing"
