"""Whose fault it is that a command of Slurm fails, by what such commands have really said."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flannel_pl.errors import RunError, UserError
from flannel_pl.launch.launchers.slurm import commands
from flannel_pl.launch.launchers.slurm.commands import (
    cancel,
    jobs_with_comment,
    max_array_size,
    sbatch,
    set_array_limit,
    task_states,
)
from tests.launch.slurm_answers import (
    CONFIG,
    PING_DOWN,
    PING_UP,
    Answer,
    controller_gone,
    controller_hung,
    no_configuration,
    pretend,
)

Pretend = Callable[[dict[str, Answer]], None]


@pytest.fixture(name="slurm")
def slurm_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretend:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return lambda answers: pretend(tmp_path / "bin", answers)


ASK: dict[str, Callable[[], object]] = {
    "sbatch": lambda: sbatch(["--array=0-2"], "script.sh", ["0"]),
    "squeue": lambda: task_states(["12"]),
    "squeue of mine": lambda: jobs_with_comment("mine"),
    "scancel": lambda: cancel(["12"]),
    "scontrol show": lambda: max_array_size(),
    "scontrol update": lambda: set_array_limit("12", 2),
}


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize("trouble", [controller_gone, controller_hung, no_configuration])
@pytest.mark.parametrize("ping", [PING_DOWN, PING_UP], ids=["still down", "up again"])
def test_a_controller_that_does_not_answer_is_nobodys_mistake(
    slurm: Pretend, ask: str, trouble: Callable[[str], Answer], ping: Answer
) -> None:
    command = ask.removesuffix(" of mine")
    slurm({command: trouble(command), "scontrol ping": ping})
    with pytest.raises(RunError, match=r"^Slurm does not answer: .*\. Start this command again later\.$"):
        ASK[ask]()


REFUSALS = [
    Answer(
        stderr="sbatch: error: invalid partition specified: nowhere\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
        code=1,
    ),
    Answer(stderr="sbatch: error: Batch job submission failed: Invalid job array specification\n", code=1),
    Answer(
        stderr="sbatch: error: Memory specification can not be satisfied\n"
        "sbatch: error: Batch job submission failed: Requested node configuration is not available\n",
        code=1,
    ),
    Answer(stderr="sbatch: error: Invalid --time specification\n", code=255),
    Answer(
        stderr="sbatch: unrecognized option '--foo'\nTry \"sbatch --help\" for more information\n", code=1
    ),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.stderr.split(":")[-1].strip())
def test_a_refusal_is_the_users(slurm: Pretend, refusal: Answer) -> None:
    slurm({"sbatch": refusal, "scontrol ping": PING_UP})
    said = refusal.stderr.splitlines()[0].removeprefix("sbatch: ").removeprefix("error: ")
    with pytest.raises(
        UserError, match=r"^sbatch refused the job: .* It was asked for --array=0-2;"
    ) as raised:
        ASK["sbatch"]()
    assert said in str(raised.value)


def test_of_unknown_words_the_controller_decides(slurm: Pretend) -> None:
    slurm(
        {"sbatch": Answer(stderr="sbatch: error: of a later version\n", code=1), "scontrol ping": PING_DOWN}
    )
    with pytest.raises(RunError, match="Slurm does not answer: of a later version"):
        ASK["sbatch"]()


def test_a_limit_that_slurm_refuses_and_one_of_a_job_that_has_ended(slurm: Pretend) -> None:
    denied = Answer(stderr="Access/permission denied for job 12\n", code=1)
    slurm({"scontrol update": denied, "scontrol ping": PING_UP})
    with pytest.raises(
        UserError, match="does not change the array_limit of job 12: Access/permission denied"
    ):
        ASK["scontrol update"]()
    slurm({"scontrol update": Answer(stderr="Invalid job id specified for job 12\n", code=1)})
    ASK["scontrol update"]()


@pytest.mark.parametrize("ask", ASK)
def test_a_command_that_takes_for_ever(
    slurm: Pretend, ask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm({})
    for name in ("sbatch", "squeue", "scancel", "scontrol"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(commands, "TIMEOUT_S", 0.1)
    with pytest.raises(RunError, match=r"does not answer: \w+ took more than 0 s\. Start this command again"):
        ASK[ask]()


@pytest.mark.parametrize("ask", ASK)
def test_a_command_that_is_not_there(ask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="cannot be started, No such file or directory"):
        ASK[ask]()


def test_states_of_tasks(slurm: Pretend) -> None:
    slurm(
        {
            "squeue": Answer(
                "12_0|RUNNING|None\n12_1|PENDING|Resources\n13|PENDING|Dependency\na site's word\n"
            )
        }
    )
    assert task_states(["12", "13"]) == {
        "12_0": ("RUNNING", "None"),
        "12_1": ("PENDING", "Resources"),
        "13": ("PENDING", "Dependency"),
    }
    slurm({"squeue": Answer(stderr="slurm_load_jobs error: Invalid job id specified\n", code=1)})
    assert task_states(["12"]) == {}


def test_jobs_are_known_by_their_comment(slurm: Pretend) -> None:
    slurm({"squeue": Answer("12|mine\n12|mine\n7|mine too\n8|(null)\n9|mine\n10\n")})
    assert jobs_with_comment("mine") == ["12", "9"]


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (CONFIG.stdout, 1001),
        ("MaxArraySize            = 75001\n", 75001),
        ("MaxArraySize = 4001\nSchedulerParameters     = bf_max=3,max_array_tasks=500,defer\n", 500),
        ("MaxArraySize = 0\n", 1),
        ("", 1001),
    ],
)
def test_how_many_tasks_an_array_may_have(slurm: Pretend, config: str, size: int) -> None:
    slurm({"scontrol show": Answer(config)})
    assert max_array_size() == size


def test_what_sbatch_says_of_a_job_that_it_has_taken(slurm: Pretend) -> None:
    slurm({"sbatch": Answer("Welcome to the 5 nodes\n4711;east\n")})
    assert ASK["sbatch"]() == "4711"
    slurm({"sbatch": Answer("taken\n")})
    with pytest.raises(RunError, match=r"taken a job but did not say its number: taken\. Look for it"):
        ASK["sbatch"]()
