"""Which runs of an experiment would go on in another environment than they were begun in."""

import contextlib
from collections.abc import Sequence

from flannel_pl.errors import RunError
from flannel_pl.experiment import Experiment, Run, Slot
from flannel_pl.quantities.core.environment import host_environment, refuse_other_environment
from flannel_pl.recording.formats.opening import is_there


def check_environments(
    experiment: Experiment, runs: Sequence[Run], slot: Slot, *, elsewhere: bool = False
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
    now = {**host_environment(slot.accelerator), "threads": slot.threads}
    if elsewhere:
        now = {key: now[key] for key in ("versions", "python", "source")}
    for run in runs:
        paths = experiment.paths.run(run.index)
        checkpoints = paths.checkpoints()
        if checkpoints and is_there(paths.partial):
            first_row = 1 + checkpoints[0][0] // experiment.config.recorder.every_n_steps
            with contextlib.suppress(RunError):  # a damaged file is not gone on with
                refuse_other_environment(paths, now, first_row)
