"""Which jobs an experiment was handed over as, and what they were started with: `jobs.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flannel_pl.config import Config
from flannel_pl.dotted import flatten
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.plugins import launchers
from flannel_pl.recording.sameness import INCIDENTAL
from flannel_pl.recording.writing.disk import write_file
from flannel_pl.small_files import read_small


@dataclass(frozen=True)
class Jobs:
    """The jobs that an experiment was last handed over as."""

    launcher: str
    """Whose they are."""

    tasks: Mapping[int, str]
    """Run that has a job -> its name."""

    gather: str | None
    """Name of the job that gathers; None if nothing is to be gathered."""

    settings: Mapping[str, Any] | None
    """What they were started with, see `settings_of`; None if a version that did not note it did so."""

    submitted_s: float
    """When, Unix time in seconds; 0 if that was not noted."""

    @classmethod
    def read(cls, paths: ExperimentPaths) -> "Jobs | None":
        """Returns what `jobs.json` says, or what an earlier version wrote in its place.

        None if nothing was handed over, or nothing readable is there.
        """
        path = paths.noted_jobs
        try:
            content = json.loads(read_small(path))
            if path == paths.older_jobs:
                content = {"launcher": path.stem, **_of_arrays(content)}
            launcher, gather, settings = content["launcher"], content["gather"], content["settings"]
            tasks = {int(run): _text(job) for run, job in content["tasks"].items()}
            return cls(
                _text(launcher),
                tasks,
                None if gather is None else _text(gather),
                None if settings is None else dict(settings),
                float(content["submitted_s"]),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None

    def write(self, paths: ExperimentPaths) -> None:
        """Writes `jobs.json`.

        Raises:
            RunError: If the disk fails.
        """
        write_file(paths.jobs, json.dumps(self.content).encode() + b"\n")
        paths.older_jobs.unlink(missing_ok=True)

    @property
    def content(self) -> dict[str, Any]:
        """What `jobs.json` holds."""
        return asdict(self)

    @property
    def names(self) -> list[str]:
        """Names of all jobs."""
        return [*self.tasks.values(), *([self.gather] if self.gather else [])]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or value.startswith("-"):
        raise ValueError(value)
    return value


def _of_arrays(content: dict[str, Any]) -> dict[str, Any]:
    """Returns what an earlier version wrote, which knew array jobs only, as it is written now."""
    # Before arrays were split there was one, whose task numbers are those of the runs.
    arrays = content.get("arrays", [{"job": content["array_job"], "first_run": 0}])
    first_runs = sorted((int(array["first_run"]), int(array["job"])) for array in arrays)
    tasks = {}
    for run in map(int, content["runs"]):
        first_run, job = [array for array in first_runs if array[0] <= run][-1]
        tasks[run] = f"{job}_{run - first_run}"
    gather = content["gather_job"]
    return {
        "tasks": tasks,
        "gather": None if gather is None else str(int(gather)),
        "settings": content.get("settings"),
        "submitted_s": content.get("submitted_s", 0.0),
    }


def settings_of(config: Config) -> dict[str, Any]:
    """Returns, by dotted key, what jobs are started with besides that which decides the recorded bits.

    Not whether `fit` waits for them, which is nothing to them, nor the keys of other launchers.

    Args:
        config: An experiment's config.
    """
    left_out = {"detach", *launchers()} - {config.launch.launcher}
    trainer = config.trainer.arguments
    groups = {
        "launch": {key: value for key, value in config.content["launch"].items() if key not in left_out},
        "trainer": {key: value for key, value in trainer.items() if f"trainer.{key}" in INCIDENTAL},
        "experiment": {"gather": config.experiment.gather, "keep_shards": config.experiment.keep_shards},
    }
    return dict(flatten(groups))


def setting_changes(jobs: Jobs, config: Config) -> dict[str, tuple[Any, Any]]:
    """Returns each differing key -> what the jobs were started with, and what is asked for now."""
    ours, theirs = settings_of(config), jobs.settings
    if theirs is None:
        return {}
    keys = sorted(ours.keys() | theirs.keys())
    return {key: (theirs.get(key), ours.get(key)) for key in keys if theirs.get(key) != ours.get(key)}
