"""Whether a run can go on from a checkpoint: else it begins anew when it was interrupted, and says so."""

import io
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from flannel_pl.adapters.lightning.checkpoint import checkpoint_bytes
from flannel_pl.adapters.lightning.recorder import StepRecorder

_PAIR = ("state_dict", "load_state_dict")


def why_anew(trainer: Any) -> str:
    """Returns why an interrupted run would begin anew; nothing if it can go on.

    Args:
        trainer: The Trainer, where training starts.
    """
    kind = type(trainer.datamodule)
    if not _keeps_position(trainer):
        return (
            f"{kind.__module__}.{kind.__qualname__} keeps no position (state_dict and load_state_dict, of it "
            "or of its loader), so a run that is interrupted begins anew"
        )
    if sized_len(trainer.fit_loop._combined_loader) is None:
        return (
            f"the loader of {kind.__module__}.{kind.__qualname__} has no len: Lightning takes a batch ahead "
            "of it, and its position is one too far; so a run that is interrupted begins anew"
        )
    data = checkpoint_bytes(trainer)
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a class cannot do with what it finds
        said = next(
            (line for line in str(error).splitlines() if "GLOBAL" in line), str(error).splitlines()[0]
        )
        return (
            "what model, data or callbacks put into checkpoints (as with save_hyperparameters) is more than "
            f"tensors and plain values ({said}), so a run that is interrupted begins anew"
        )
    return ""


def _keeps_position(trainer: Any) -> bool:
    """Tells whether a checkpoint says where in the data a training is: of each loader, or the data module."""
    data = trainer.datamodule
    if data is not None and all(is_overridden(name, data, parent=LightningDataModule) for name in _PAIR):
        return True
    loaders = trainer.fit_loop._combined_loader.flattened
    return all(callable(getattr(loader, name, None)) for loader in loaders for name in _PAIR)


class Positions(Callback):
    """Has a run that cannot go on make no checkpoints, so that it begins anew, to the same bits.

    Args:
        recorder: What makes the checkpoints.
        say: Given a sentence about it.
    """

    def __init__(self, recorder: StepRecorder, say: Callable[[str], object]) -> None:
        self._recorder, self._say = recorder, say

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at what there is now."""
        if trainer.global_step == 0 and (why := why_anew(trainer)):
            self._recorder.make_no_checkpoints()
            self._say(why)
