"""Which jobs an experiment was handed to Slurm as, and what they were submitted with: `slurm.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flannel_pl.experiment import ExperimentPaths, flatten
from flannel_pl.recording.sameness import INCIDENTAL
from flannel_pl.recording.writing.disk import write_file
from flannel_pl.small_files import read_small

ARRAY_LIMIT = "launch.slurm.array_limit"


@dataclass(frozen=True)
class ArrayJob:
    """One array job."""

    job: str
    """Its number."""

    first_run: int
    """The run that its task 0 would train; task 1 trains the next one, and so on."""


@dataclass(frozen=True)
class Submission:
    """The jobs that an experiment was last handed to Slurm as."""

    arrays: tuple[ArrayJob, ...]
    """One as a rule; several, by their first runs, where an array job may not have that many tasks."""

    gather_job: str | None
    """Number of the job that gathers; None if nothing is to be gathered."""

    runs: tuple[int, ...]
    """Runs that have a task."""

    settings: Mapping[str, Any] | None
    """What they were submitted with, see `settings_of`; None if a version that did not note it did so."""

    submitted_s: float
    """When, Unix time in seconds; 0 if that was not noted."""

    @classmethod
    def read(cls, paths: ExperimentPaths) -> "Submission | None":
        """Returns what `slurm.json` says; None if nothing was submitted, or nothing readable is there."""
        try:
            content = json.loads(read_small(paths.slurm))
            # Before arrays were split there was one, whose task numbers are those of the runs.
            arrays = content.get("arrays", [{"job": content["array_job"], "first_run": 0}])
            gather_job, settings = content["gather_job"], content.get("settings")
            runs = tuple(int(run) for run in content["runs"])
            if any(run < min(array["first_run"] for array in arrays) for run in runs):
                return None
            return cls(
                tuple(ArrayJob(str(int(array["job"])), int(array["first_run"])) for array in arrays),
                None if gather_job is None else str(int(gather_job)),
                runs,
                None if settings is None else dict(settings),
                float(content.get("submitted_s", 0.0)),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None

    def write(self, paths: ExperimentPaths) -> None:
        """Writes `slurm.json`.

        Raises:
            RunError: If the disk fails.
        """
        write_file(paths.slurm, json.dumps(self.content).encode() + b"\n")

    @property
    def content(self) -> dict[str, Any]:
        """What `slurm.json` holds."""
        return {"array_job": self.arrays[0].job if self.arrays else None, **asdict(self)}

    @property
    def jobs(self) -> list[str]:
        """Numbers of the jobs, as `scancel` wants them."""
        return [*(array.job for array in self.arrays), *([self.gather_job] if self.gather_job else [])]

    def task(self, run: int) -> str:
        """Returns what Slurm calls the task of a run, e.g. 12_3."""
        array = max((array for array in self.arrays if array.first_run <= run), key=lambda one: one.first_run)
        return f"{array.job}_{run - array.first_run}"


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns, by dotted key, what jobs are submitted with besides that which decides the recorded bits.

    Not whether `fit` waits for them, which is nothing to them.

    Args:
        config: An experiment's config.
    """
    trainer, experiment = config["trainer"], config["experiment"]
    groups = {
        "launch": {key: value for key, value in config["launch"].items() if key != "detach"},
        "trainer": {key: value for key, value in trainer.items() if f"trainer.{key}" in INCIDENTAL},
        "experiment": {key: experiment[key] for key in ("gather", "keep_shards")},
    }
    return dict(flatten(groups))


def setting_changes(submission: Submission, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns each differing key -> what the jobs were submitted with, and what is asked for now."""
    ours, theirs = settings_of(config), submission.settings
    if theirs is None:
        return {}
    keys = sorted(ours.keys() | theirs.keys())
    return {key: (theirs.get(key), ours.get(key)) for key in keys if theirs.get(key) != ours.get(key)}
