"""Whether a run can go on within its data: else it begins anew when it was interrupted, and says so."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from flannel_pl.adapters.lightning.recorder import StepRecorder


def keeps_position(trainer: Any) -> bool:
    """Tells whether a checkpoint says where in the data a training is.

    Either every loader has `state_dict` and `load_state_dict`, or the data module has its own.

    Args:
        trainer: The Trainer, where training starts.
    """
    data, pair = trainer.datamodule, ("state_dict", "load_state_dict")
    if data is not None and all(is_overridden(name, data, parent=LightningDataModule) for name in pair):
        return True
    loaders = trainer.fit_loop._combined_loader.flattened
    return all(callable(getattr(loader, name, None)) for loader in loaders for name in pair)


def begins_anew(data: Any) -> str:
    """Says what becomes of an interrupted run whose data keep no position."""
    name = f"{type(data).__module__}.{type(data).__qualname__}"
    return (
        f"{name} keeps no position (state_dict and load_state_dict, of it or of its loader), so a run that "
        "is interrupted begins anew"
    )


class Positions(Callback):
    """Has a run whose data keep no position make no checkpoints, so that it begins anew, to the same bits.

    Args:
        recorder: What makes the checkpoints.
        say: Given a sentence about it.
    """

    def __init__(self, recorder: StepRecorder, say: Callable[[str], object]) -> None:
        self._recorder, self._say = recorder, say

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the data, which are there now."""
        if not keeps_position(trainer):
            self._recorder.make_no_checkpoints()
            self._say(begins_anew(trainer.datamodule))  # type: ignore[attr-defined]
