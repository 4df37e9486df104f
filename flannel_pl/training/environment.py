"""Which runs of an experiment would go on in another environment than they were begun in."""

import contextlib
from collections.abc import Sequence
from typing import Any

from flannel_pl.config import Config
from flannel_pl.errors import RunError
from flannel_pl.experiment import ResolvedExperiment, Run, Slot
from flannel_pl.quantities.core.environment import host_environment, refuse_other_environment
from flannel_pl.recording.formats.opening import is_there

SET_BY_LIGHTNING = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Variables that a deterministic Trainer sets for its process, whatever they were."""


def check_environments(
    experiment: ResolvedExperiment, runs: Sequence[Run], slot: Slot, *, elsewhere: bool = False
) -> None:
    """Refuses, before anything is trained, to go on with runs where something that can change bits differs.

    Of what is known without asking a GPU or a Trainer; the rest is compared when a run starts. Runs that are
    trained elsewhere have this host's software, and nobody knows which processor.

    Args:
        experiment: The experiment.
        runs: Those of its runs that are to be trained.
        slot: Where.
        elsewhere: Whether that is on another host.

    Raises:
        UserError: If one of them was begun elsewhere, and that is not to be mixed.
    """
    if experiment.config.launch.mix_environments:
        return
    host = {**host_environment(slot.accelerator), "threads": slot.threads}
    if elsewhere:
        host = {key: host[key] for key in ("versions", "python", "source")}
    for run in runs:
        now = host if elsewhere else _with_trainer(host, experiment.run_config(run), slot)
        paths = experiment.paths.run(run.index)
        checkpoints = paths.checkpoints()
        if checkpoints and is_there(paths.partial):
            first_row = 1 + checkpoints[0][0] // experiment.config.recorder.every_n_steps
            with contextlib.suppress(RunError):  # a damaged file is not gone on with
                refuse_other_environment(paths, now, first_row)


def _with_trainer(host: dict[str, Any], config: Config, slot: Slot) -> dict[str, Any]:
    """Returns a run's environment as it is going to be once it has a Trainer."""
    if slot.accelerator != "cuda" or not config.trainer.arguments.get("deterministic"):
        return host
    return {**host, "variables": {**host["variables"], **SET_BY_LIGHTNING}}
