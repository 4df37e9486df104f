"""A real Slurm of two nodes on this host: a controller and two node daemons, children of the tests."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")

# Both nodes are this host, told apart by their ports. No munge, no accounting, no cgroups: only scheduling.
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
ReturnToService=2
KillWait=20
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Returns why there can be no Slurm here; None if there can be one."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"there is no {', '.join(missing)} here (Debian: slurm-wlm)" if missing else None


@contextmanager
def cluster(folder: Path, *settings: str) -> Iterator[Path]:
    """Starts the daemons and ends them, and with them every job.

    Args:
        folder: Empty, for their files.
        settings: Further lines of the configuration.

    Yields:
        The configuration file, for `SLURM_CONF`.
    """
    (folder / "state").mkdir()
    config = folder / "slurm.conf"
    text = CONFIG.format(
        folder=folder, host=socket.gethostname(), user=getpass.getuser(), ports=_free_ports(3)
    )
    config.write_text("\n".join((text, *settings, "")))
    environment = {**os.environ, "SLURM_CONF": str(config)}
    with ExitStack() as daemons:
        for name, command in (
            ("slurmctld", ["slurmctld", "-D", "-i"]),
            ("n1", ["slurmd", "-D", "-N", "n1"]),
            ("n2", ["slurmd", "-D", "-N", "n2"]),
        ):
            log = daemons.enter_context((folder / f"{name}.log").open("w"))
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            daemons.callback(process.wait)
            daemons.callback(process.terminate)
        _wait_until_idle(environment, folder)
        yield config
        subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, check=False)
        time.sleep(1)


def jobs_of(folder: Path) -> dict[str, Any]:
    """Returns the jobs of an experiment as Slurm counts them: its arrays, their runs, and what gathers."""
    content = json.loads((folder / "jobs.json").read_text())
    arrays: dict[str, int] = {}
    for run, task in content["tasks"].items():
        job, _, number = task.partition("_")
        arrays.setdefault(job, int(run) - int(number))
    return {
        "arrays": [{"job": job, "first_run": first_run} for job, first_run in arrays.items()],
        "array_job": next(iter(arrays)),
        "gather_job": content["gather"],
        "runs": [int(run) for run in content["tasks"]],
        "settings": content["settings"],
    }


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    deadline_s = time.monotonic() + 60
    states = ""
    while time.monotonic() < deadline_s:
        command = ["sinfo", "--noheader", "--Node", "--format=%T"]
        answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        states = answer.stdout + answer.stderr
        if answer.stdout.split() == ["idle", "idle"]:
            return
        time.sleep(0.2)
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.log")))
    raise RuntimeError(f"Slurm did not come up: {states}\n{logs}")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in bound]
