"""How many steps a number of epochs is: the data tell, once for all runs, before anything is trained."""

import copy
import json
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from flannel_pl.adapters.lightning.stepping import num_steps
from flannel_pl.config import Config
from flannel_pl.errors import UserError
from flannel_pl.experiment import ResolvedExperiment
from flannel_pl.training.rehearsal import Enough
from flannel_pl.training.trial import try_start


def with_length(content: dict[str, Any]) -> dict[str, Any]:
    """Returns a resolved config with a number of steps where it has a number of epochs alone.

    Args:
        content: The config; `trainer.max_steps` -1 and a `trainer.max_epochs` ask for this.

    Raises:
        UserError: If the data have no length, or not all runs have the same number of steps.
    """
    config = Config.of(content)
    if config.trainer.max_steps != -1 or (config.trainer.max_epochs or 0) < 1:
        return content
    experiment = ResolvedExperiment.from_config(content)
    lengths: dict[str, int] = {}
    for run in experiment.runs:
        swept = json.dumps(run.swept, sort_keys=True)
        of_run = experiment.run_config(run)
        if swept not in lengths:
            lengths[swept] = of_run.trainer.max_steps
            if lengths[swept] == -1:
                lengths[swept] = _num_steps(of_run, seed=run.seed)
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"trainer.max_epochs {config.trainer.max_epochs} is not the same number of steps in all runs "
            f"({_few(lengths)}), and runs of one experiment have as many rows; give trainer.max_steps"
        )
    (length,) = set(lengths.values())
    found = copy.deepcopy(content)
    found["trainer"]["max_steps"] = length
    return found


def _few(lengths: Mapping[str, int]) -> str:
    named = [f"{swept}: {length}" for swept, length in lengths.items()]
    return ", ".join(named[:3]) + (", ..." if len(named) > 3 else "")


def _num_steps(config: Config, *, seed: int) -> int:
    look = _Counts()
    try_start(config, look, seed=seed)
    if look.num_steps is None:
        raise UserError(
            f"trainer.max_epochs is {config.trainer.max_epochs}, and the data do not say how long one is; "
            "give the most steps there may be, e.g. --trainer.max_steps 1000; training may end before that"
        )
    return look.num_steps


class _Counts(Callback):
    """Asks a training where it starts how many steps it takes, and ends it there."""

    def __init__(self) -> None:
        self.num_steps: int | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.num_steps = num_steps(trainer)
        raise Enough
