"""What of a Lightning training decides how the optimizer steps, and who else may change weights."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.model_helpers import is_overridden

from flannel_pl.errors import UserError

_LATER_HOOKS = (
    *("on_train_epoch_end", "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad"),
    *("on_validation_start", "on_validation_epoch_start", "on_validation_batch_start"),
    *("on_validation_batch_end", "on_validation_epoch_end", "on_validation_end", "on_before_backward"),
    *("on_after_backward", "on_save_checkpoint", "on_before_optimizer_step"),
)
"""Where a callback may change weights after their row was taken and before their gradient is."""


def refuse_unrecordable(trainer: Trainer, module: LightningModule) -> None:
    """Refuses a training of which no step could be recorded.

    Args:
        trainer: The Trainer.
        module: What it is to train.

    Raises:
        UserError: Says what stands in the way.
    """
    if not module.automatic_optimization:
        raise UserError(
            f"{type(module).__name__} optimizes by hand, so that Lightning cannot tell one step from "
            "the next; set automatic_optimization = True, or record it with flannel_pl.Recorder in its "
            "training_step"
        )
    if trainer.max_steps != -1 and trainer.max_steps < 1:
        raise UserError(f"trainer.max_steps is {trainer.max_steps}, expected at least 1, or -1")
    if trainer.world_size != 1:
        raise UserError(
            f"this Trainer spreads one run over {trainer.world_size} devices, but a recorded run has "
            "one; use devices=1, or `flannel-pl fit` to train several runs side by side"
        )


def may_skip(trainer: Trainer, module: LightningModule) -> bool:
    """Tells whether something decides from step to step that the optimizer does not step."""
    plugin: Any = trainer.precision_plugin
    if getattr(plugin, "scaler", None) is not None or is_overridden("optimizer_step", module):
        return True
    return type(plugin).optimizer_step not in (Precision.optimizer_step, MixedPrecision.optimizer_step)


def num_steps(trainer: Trainer) -> int | None:
    """Returns how many steps a training takes at most, once it has its data; None if nobody knows."""
    if trainer.max_steps != -1:
        return trainer.max_steps
    estimated = trainer.estimated_stepping_batches
    return int(estimated) if 0 < estimated < float("inf") else None


def who_changes(trainer: Trainer) -> str:
    """Returns, in words, who may change weights after their row, and where it would be right."""
    who = ", ".join(_later_callbacks(trainer)) or (
        "the module itself (an Embedding with max_norm is one, its own on_train_batch_end another)"
    )
    return (
        f"it may be the doing of {who}. What a callback (not the module) does in on_train_batch_end comes "
        "before the recorder; do it there, or leave it out"
    )


def _later_callbacks(trainer: Trainer) -> Iterator[str]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        is_ours = type(callback).__module__.startswith(("lightning.", "flannel_pl."))
        if not is_ours and any(is_overridden(hook, callback, parent=Callback) for hook in _LATER_HOOKS):
            yield type(callback).__name__
