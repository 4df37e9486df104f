"""What SIGINT and SIGTERM do to a run: the first ends it after the step it is in, the second at once."""

import os
import signal
import time
from contextlib import ExitStack
from types import FrameType

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from flannel_pl.adapters.lightning.recorder import StepRecorder
from flannel_pl.signals import REPEAT_S, handled, heeded_signals


class StopOnSignal(Callback):
    """Hands the first signal to the recorder, which brings everything to the disk at the end of the step.

    In place of Lightning's own handlers while training lasts: those stop between any two statements, where a
    checkpoint would not be the state after a step.

    Args:
        recorder: Whom to tell.
    """

    def __init__(self, recorder: StepRecorder) -> None:
        self._recorder = recorder
        self._heeded = heeded_signals()  # before Lightning takes SIGTERM over, also where it is ignored
        self._taken = ExitStack()
        self._asked_s = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals over; Lightning has registered its handlers by now."""
        self._taken.enter_context(handled(self._handle, heeded=self._heeded))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the signals back."""
        self._taken.close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the signals back."""
        self._taken.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._recorder.stop_signal is None:
            self._recorder.stop_signal, self._asked_s = number, time.monotonic()
        elif number == signal.SIGINT or time.monotonic() - self._asked_s > REPEAT_S:
            os._exit(128 + number)  # what is on the disk is whole at any moment
