"""Why a training has ended before its last step: what Lightning calls the reasons for which it stops."""

from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from flannel_pl.recording.formats.early_end import MAX_REASON_CHARS


def why_ended(trainer: Trainer) -> str:
    """Returns what ended a training that was not to go on, in words for a person.

    Args:
        trainer: At the end of its training, which no exception has ended.
    """
    loop: Any = trainer.fit_loop
    reasons = []
    # The epoch in which a training is stopped counts as processed, too.
    is_whole = loop.epoch_loop.batch_progress.is_last_batch
    processed = loop.epoch_progress.current.processed
    if loop.max_epochs not in (None, -1) and is_whole and processed >= loop.max_epochs:
        reasons.append(f"max_epochs {loop.max_epochs}")
    if trainer.should_stop:
        reasons += [why for callback in trainer.callbacks if (why := _why_stopped(callback))]  # type: ignore[attr-defined]
        reasons = reasons or ["a callback set trainer.should_stop"]
    words = "; ".join(reasons) or "there was nothing more to train on"
    return "".join(char if char.isprintable() else " " for char in words)[:MAX_REASON_CHARS]


def _why_stopped(callback: Any) -> str | None:
    """Returns why one of Lightning's own callbacks has asked for the end; None if it has not."""
    if isinstance(callback, Timer):
        left_s = callback.time_remaining()
        if left_s is not None and left_s <= 0:
            return f"max_time {timedelta(seconds=round(left_s + callback.time_elapsed()))}"
    if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
        message = callback.stopping_reason_message.removesuffix("Signaling Trainer to stop.")
        return f"{type(callback).__name__}: {message.strip().rstrip('.')}"
    return None
