"""What Slurm's commands have really said (version 22.05), and commands that say it again."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """What a command says, and its exit code."""

    stdout: str = ""
    stderr: str = ""
    code: int = 0


NO_CONTACT = "Unable to contact slurm controller (connect failure)"
TIMED_OUT = "Socket timed out on send/recv operation"
NO_CONFIG = (
    "{0}: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n"
    "{0}: error: fetch_config: DNS SRV lookup failed\n"
    "{0}: error: _establish_config_source: failed to fetch config\n"
    "{0}: fatal: Could not establish a configuration source\n"
)
PING_DOWN = Answer(
    "Slurmctld(primary) at login1 is DOWN\n*****************************************\n"
    "** RESTORE SLURMCTLD DAEMON TO SERVICE **\n*****************************************\n",
    code=1,
)
PING_UP = Answer("Slurmctld(primary) at login1 is UP\n")
CONFIG = Answer(
    "MaxArraySize            = 1001\nMaxJobCount             = 10000\n"
    "SchedulerParameters     = batch_sched_delay=0,sched_min_interval=100000\n"
)


def controller_gone(command: str) -> Answer:
    """The controller's process has ended."""
    return {
        "sbatch": Answer(stderr=f"sbatch: error: Batch job submission failed: {NO_CONTACT}\n", code=1),
        "squeue": Answer(stderr=f"slurm_load_jobs error: {NO_CONTACT}\n", code=1),
        "scancel": Answer(stderr=f"scancel: error: Kill job error on job id 1: {NO_CONTACT}\n", code=8),
        "scontrol show": Answer(stderr=f"slurm_load_ctl_conf error: {NO_CONTACT}\n", code=1),
        "scontrol update": Answer(stderr="Unexpected message received for job 1\n", code=1),
    }[command]


def controller_hung(command: str) -> Answer:
    """The controller's process is there and does nothing."""
    gone = controller_gone(command)
    return Answer(stderr=gone.stderr.replace(NO_CONTACT, TIMED_OUT), code=gone.code)


def no_configuration(command: str) -> Answer:
    """The host belongs to no cluster."""
    return Answer(stderr=NO_CONFIG.format(command.split()[0]), code=1)


def pretend(folder: Path, answers: Mapping[str, Answer]) -> None:
    """Makes commands that give recorded answers.

    Args:
        folder: Where, for `PATH`.
        answers: Command, perhaps with its first argument, e.g. "scontrol show" -> what it says.
    """
    folder.mkdir(exist_ok=True)
    for command in ("sbatch", "squeue", "scancel", "scontrol"):
        lines = ["#!/bin/sh", f'echo "$0 $@" >>{shlex.quote(str(folder / "asked"))}']
        for words, answer in answers.items():
            name, _, first = words.partition(" ")
            if name == command:
                lines += [
                    f'if [ "{first}" = "" ] || [ "{first}" = "$1" ]; then',
                    f"  printf %s {shlex.quote(answer.stdout)}",
                    f"  printf %s {shlex.quote(answer.stderr)} >&2",
                    f"  exit {answer.code}",
                    "fi",
                ]
        path = folder / command
        path.write_text("\n".join([*lines, f'echo "{command} $1: not recorded" >&2', "exit 99", ""]))
        path.chmod(0o755)
