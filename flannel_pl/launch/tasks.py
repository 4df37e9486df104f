"""What the process of a job is told to do: to train a run of an experiment, or to gather it."""

import sys

from flannel_pl.experiment import ExperimentPaths, Run
from flannel_pl.paths import CONFIG_NAME, run_folder

JOB_VARIABLE = "FLANNEL_PL_JOB_OF"
"""Tells the process of a job that outlives us whose it is: the experiment's folder."""

# The last word is the number of the run. `job.sh` hears which one it is before anything can go wrong.
_FIT = f"""\
run=$1/{run_folder("$2")}
if [ -n "${{FLANNEL_PL_TELL:-}}" ]; then printf '%s\\0' "$0" "$run" >"$FLANNEL_PL_TELL"; fi
{JOB_VARIABLE}="$1" exec "$0" -m flannel_pl fit --config "$run/{CONFIG_NAME}"
"""

ATTENDED_VARIABLE = "FLANNEL_PL_ATTENDED"
"""Tells the process of a job that ends with us in which folder another holds the lock and writes events."""

_GATHER = '"$0" -m flannel_pl.launch.giving_up "$1"; exec "$0" -m flannel_pl gather "$1"'


def run_command(paths: ExperimentPaths, run: Run) -> tuple[str, ...]:
    """Returns the command that trains a run whose config is written."""
    return ("bash", "-c", _FIT, sys.executable, str(paths.folder), str(run.index))


def attended_command(paths: ExperimentPaths, run: Run, *, attempt: int) -> tuple[str, ...]:
    """Returns the same for a run whose launcher waits for it.

    Args:
        paths: The experiment's files; their lock is held.
        run: The run.
        attempt: How often it is started, this time included.
    """
    environment = (f"{ATTENDED_VARIABLE}={paths.folder}", f"FLANNEL_PL_ATTEMPT={attempt}")
    return ("env", *environment, *run_command(paths, run))


def gather_command(paths: ExperimentPaths) -> tuple[str, ...]:
    """Returns the command that gathers an experiment whose other jobs have ended."""
    return ("bash", "-c", _GATHER, sys.executable, str(paths.folder))
