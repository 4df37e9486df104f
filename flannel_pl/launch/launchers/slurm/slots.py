"""What a run gets on a Slurm cluster: its slot, and a look at the settings that only Slurm has."""

import re
from pathlib import Path

from flannel_pl.config import Config
from flannel_pl.errors import UserError
from flannel_pl.experiment import Slot
from flannel_pl.launch.launcher import threads_per_run
from flannel_pl.launch.launchers.slurm.settings import SlurmConfig
from flannel_pl.recording.experiment_record import ExperimentRecord

WARNING_S = 120
"""Seconds before the time limit at which Slurm warns a run; a checkpoint takes far less."""

SHORTEST_S = 300
"""Shortest time limit: Slurm may warn a minute early, and a run has to get somewhere before that."""

_TIME = r"(?:(?P<days>\d+)-(?P<day_hours>\d+)(?::(?P<day_minutes>\d+))?(?::(?P<day_seconds>\d+))?|"
_TIME += r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)|(?P<only_minutes>\d+)(?::(?P<and_seconds>\d+))?)"
_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


def slurm_slots(
    config: Config,
    slurm: SlurmConfig,
    *,
    folder: Path,
    num_runs: int,
    record: ExperimentRecord | None,
) -> tuple[Slot, ...]:
    """Returns the places that runs get on a cluster: as many as may be trained at the same time.

    Args:
        config: The experiment's config.
        slurm: What of it only Slurm has.
        folder: The experiment's folder.
        num_runs: Runs that are to be trained.
        record: What the folder's `experiment.json` says, whose number of threads `auto` then means.

    Raises:
        UserError: If a key asks for what a task of one run cannot have.
    """
    launch, trainer = config.launch, config.trainer
    for key, value in (
        ("trainer.devices", trainer.devices),
        ("launch.devices", launch.devices),
        ("launch.runs_per_device", launch.runs_per_device),
    ):
        if value not in ("auto", 1):
            raise UserError(
                f"{key} is {value}, but with launch.launcher slurm every run has a device of its own; how "
                "many are trained at the same time is launch.slurm.array_limit"
            )
    for option in slurm.extra:
        if option.startswith(("-M", "--cluster")):
            raise UserError(f"launch.slurm.extra has {option}; start fit on a host of that cluster instead")
    if slurm.array_limit is not None and slurm.array_limit < 1:
        raise UserError(f"launch.slurm.array_limit is {slurm.array_limit}, expected at least 1, or null")
    _check_time(slurm.time)
    if "\\" in str(folder):
        raise UserError(f"{folder} has a backslash, which sbatch does not take; rename the folder")
    accelerator = {"gpu": "cuda", "auto": "cuda" if slurm.gpus_per_run else "cpu"}.get(
        trainer.accelerator, trainer.accelerator
    )
    if accelerator not in ("cuda", "cpu"):
        raise UserError(
            f"trainer.accelerator is {accelerator}, expected gpu, cpu or auto with launch.launcher slurm"
        )
    # Runs of one thread train most steps per core; beside a GPU the second one serves the recorder.
    threads = threads_per_run(config, record, auto=1 if accelerator == "cpu" else 2)
    places = min(num_runs, slurm.array_limit or num_runs)
    return (Slot(accelerator, None, threads),) * places


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
