"""When a run is checkpointed, and when it stops because it is asked to.

Both come after everything else that happens at the end of a step, and not where whoever goes on from the
checkpoint would miss something.
"""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from flannel_pl.adapters.lightning.checkpoint import (
    NUM_KEPT,
    checkpoint_bytes,
    checkpoint_digest,
    remove_checkpoints,
)
from flannel_pl.errors import Interrupted, UserError
from flannel_pl.experiment import RunPaths
from flannel_pl.recording.writing.writer import RecordingWriter


class Checkpoints(Callback):
    """Makes a run's checkpoints. It has to be the last of the callbacks: what the others do counts, too.

    Args:
        paths: The run's files.
        every: Steps from one to the next; None = none at all.
        asked: Returns the signal by which training is asked to stop; None while it is not.

    Raises:
        UserError: If `every` is no number of steps.
    """

    def __init__(self, paths: RunPaths, *, every: int | None, asked: Callable[[], int | None]) -> None:
        if every is not None and every < 1:
            raise UserError(f"launch.checkpoint_every is {every}, expected at least 1")
        self._paths, self._every, self._asked = paths, every, asked
        self._writer: Callable[[], RecordingWriter | None] = lambda: None
        self._last_step: int | None = None
        self._step = 0
        self._is_due = False

    def begin(
        self, writer: Callable[[], RecordingWriter | None], step: int, *, last_step: int | None
    ) -> None:
        """Begins with a training.

        Args:
            writer: Returns what brings checkpoints to the disk; None as long as there is no file.
            step: After which training goes on.
            last_step: None if nobody knows.
        """
        self._writer, self._step, self._last_step = writer, step, last_step

    def leave_out(self) -> None:
        """Makes none from now on."""
        self._every = None

    def make(self, trainer: Trainer, *, keep: int = NUM_KEPT) -> None:
        """Makes one of this moment, if there are any, and removes all but the newest `keep`."""
        writer = self._writer()
        if self._every is None or writer is None:
            return
        data = checkpoint_bytes(trainer)
        path = self._paths.checkpoint(trainer.global_step, checkpoint_digest(data))
        writer.checkpoint(path, data, then=lambda: remove_checkpoints(self._paths, keep=keep))
        self._is_due = False

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Makes a checkpoint if a step has ended and one is due, and stops if that is asked for."""
        if trainer.global_step == self._step:
            return
        step = self._step = trainer.global_step
        self._is_due |= self._every is not None and step % self._every == 0
        last, signal = step == self._last_step, self._asked()
        if not last and _would_miss(trainer):
            return
        if last or signal is not None or self._is_due:
            self.make(trainer, keep=1 if last else NUM_KEPT)
        if signal is not None and not last:
            raise Interrupted(signal, keeps_all=self._every is not None)


def _would_miss(trainer: Trainer) -> bool:
    """Tells whether who goes on from this moment would not do what comes next, if nothing interrupts it."""
    # He would not come to the hooks of the epoch's end, where a callback may count, or decide that the run
    # ends. After the next step there is no such doubt, unless that ends an epoch, too.
    steps_per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    is_epoch_end = trainer.is_last_batch and steps_per_epoch > 1
    # Nor would he know that a callback has just asked for the end, which comes at once.
    is_ending = trainer.should_stop and trainer.fit_loop._can_stop_early
    return is_epoch_end or is_ending
